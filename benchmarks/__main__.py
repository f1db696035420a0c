"""Every benchmark, one after another: ``python -m benchmarks``."""

from benchmarks import fairseq_trainer, orchestration

if __name__ == "__main__":
    for benchmark in (orchestration, fairseq_trainer):
        benchmark.main()
