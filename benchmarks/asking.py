"""How long it takes to ask for a trial, by the number of trials that a study has.

    python -m benchmarks.asking [--trials 100 1000 9990] [--storage memory sqlite]

Seconds until a trial has its point, other drivers waiting: first whether one is wanted, then the
sampler's proposal, its storage included; a search space of 10,000 points, values of a known
surface with noise. Medians of five, processor time and, in brackets, time on the clock.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution

from knee_tune.study.samplers import Axes, Axis, make_sampler, untried, wanted
from knee_tune.study.storage import open_storage

AXES: Axes = {
    "seed_lr": Axis(tuple(1e-4 * 1.05**i for i in range(100)), log=True),
    "explore_fraction": Axis(tuple(i / 100 for i in range(100))),
}

REPEATS = 5


def study_of(trials: int, *, sampler: str, storage: str | None) -> optuna.Study:
    """A study with as many complete trials at random points, as one driver leaves them."""
    made = None if storage is None else open_storage(storage)
    study = optuna.create_study(
        storage=made, sampler=make_sampler(sampler, seed=1, axes=AXES, start="bracket")
    )
    rng, grid = np.random.default_rng(0), untried((), AXES)
    distributions: dict[str, BaseDistribution] = {
        name: axis.distribution() for name, axis in AXES.items()
    }
    for row in rng.permutation(len(grid))[:trials]:
        params = dict(zip(AXES, grid[row], strict=True))
        lr, fraction = (
            AXES[name].distance(AXES[name].points[0], at) for name, at in params.items()
        )
        value = (lr - 0.5) ** 2 + (fraction + 0.3 * lr - 0.75) ** 2 + rng.normal(0, 0.01)
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=value)
        )
    return study


def seconds(study: optuna.Study) -> tuple[float, float]:
    """Processor time and time on the clock of one asking, medians; the first one imports."""
    spent = []
    for _ in range(REPEATS + 1):
        began = time.process_time(), time.perf_counter()
        wanted(study, AXES, trials=None)
        trial = study.ask()
        for name, axis in AXES.items():
            axis.suggest(trial, name)
        spent.append((time.process_time() - began[0], time.perf_counter() - began[1]))
        study.tell(trial, 1.0)
    processor, clock = zip(*spent[1:], strict=True)
    return statistics.median(processor), statistics.median(clock)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 9990])
    parser.add_argument("--storage", nargs="+", default=["memory", "sqlite"])
    parser.add_argument("--samplers", nargs="+", default=["gp", "tpe", "random"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # as for a driver
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", UserWarning)  # of heartbeats, which `ask` does not write
    for storage in chosen.storage:
        for sampler in chosen.samplers:
            for trials in chosen.trials:
                with tempfile.TemporaryDirectory() as folder:
                    url = None if storage == "memory" else f"sqlite:///{Path(folder)}/optuna.db"
                    study = study_of(trials, sampler=sampler, storage=url)
                    processor, clock = seconds(study)
                print(
                    f"{storage:7} {sampler:7} {trials:6,} trials {processor:6.2f} s ({clock:.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
