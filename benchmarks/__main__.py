"""Every benchmark that needs no GPU, in turn: ``python -m benchmarks``. An hour and more."""

from benchmarks import (
    asking,
    curve_tables,
    drivers,
    fairseq_trainer,
    flat,
    fused,
    orchestration,
    pruners,
    race,
    restarts,
    ridge,
    scale,
    shared,
    trunk_savings,
    trunks,
    vision,
    warm_start,
    whole,
)

if __name__ == "__main__":
    for benchmark in (
        orchestration,
        asking,
        scale,
        drivers,
        restarts,
        fairseq_trainer,
        fused,
        trunk_savings,
        trunks,
        shared,
        curve_tables,
        pruners,
        race,
        ridge,
        vision,
        warm_start,
        flat,
        whole,
    ):
        benchmark.main()
