"""Every benchmark that needs no GPU, in turn: ``python -m benchmarks``. An hour and more."""

from benchmarks import (
    curve_tables,
    fairseq_trainer,
    fused,
    orchestration,
    pruners,
    race,
    restarts,
    ridge,
    trunk_savings,
    trunks,
    vision,
    whole,
)

if __name__ == "__main__":
    for benchmark in (
        orchestration,
        restarts,
        fairseq_trainer,
        fused,
        trunk_savings,
        trunks,
        curve_tables,
        pruners,
        race,
        ridge,
        vision,
        whole,
    ):
        benchmark.main()
