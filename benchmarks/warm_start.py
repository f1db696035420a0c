"""What an earlier study is worth to a search, and what it costs where its optimum lay elsewhere.

    python -m benchmarks.warm_start [--searches 20] [--trials 16]

Searches with ``gp`` on surfaces of accuracy with the inverse relation of seed LR and explore
fraction, each point with the luck of its one random seed. The earlier study is a search of
:data:`EARLIER` trials on a surface that is lower by 5 points, has other luck, and its best seed LR
beside this one's by as many points of the grid as the table says. Cold is the bracket around a
seed LR that somebody would have thought of; all begin with the trial there, as studies do.

Regret is the mean, over searches, of the best point of the surface minus the best one found,
without luck (the found one is what the search saw as best). Brackets hold its standard error.
"""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import optuna
import torch
from optuna.exceptions import ExperimentalWarning

from knee_tune.records.study import EarlierPoint
from knee_tune.stats.estimates import Floats
from knee_tune.study.samplers import Axes, Axis, make_sampler
from knee_tune.study.told import told_of

SEED_LRS = tuple(0.005 * 1.5**i for i in range(9))
FRACTIONS = tuple(round(0.1 * i, 1) for i in range(10))
AXES: Axes = {
    "seed_lr": Axis(SEED_LRS, log=True),
    "explore_fraction": Axis(FRACTIONS),
}
SPACE = {name: axis.distribution() for name, axis in AXES.items()}

EARLIER = 16
"""Trials of the earlier study."""

LUCK = 0.3
"""Standard deviation of one random seed at one point, in points of accuracy."""

LOWER = 5.0
"""Points of accuracy by which all values of the earlier study are lower."""

MOVES = (0, 1, 2, 4)
"""Points of the grid of seed LRs between the optima of both."""

Way = Literal["cold", "centre", "points"]
WAYS: Mapping[Way, str] = {
    "cold": "cold",
    "centre": "bracket at its best seed LR",
    "points": "the same, and its points in the model",
}


def surface(best: float, *, level: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Accuracies with and without luck, (seed LRs, fractions); ``best``: index of a seed LR."""
    away = np.arange(len(SEED_LRS))[:, None] - best
    fraction = np.clip(0.55 - 0.12 * away, 0.0, 0.9)
    truth = level - 0.2 * away**2 - 4.0 * (np.array(FRACTIONS) - fraction) ** 2
    return truth + rng.normal(0, LUCK, truth.shape), truth


def search(
    seen: Floats, *, trials: int, seed: int, centre: float, before: optuna.Study | None, way: Way
) -> optuna.Study:
    """A study of that many trials; the first one is at ``centre`` and 50 %."""
    warm = before if way != "cold" else None
    sampler = make_sampler(
        "gp",
        seed=seed,
        axes=AXES,
        start="bracket",
        centre=centre if warm is None else warm.best_params["seed_lr"],
        earlier=points_of(warm) if warm is not None and way == "points" else (),
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"seed_lr": centre, "explore_fraction": 0.5})
    for _ in range(trials):
        trial = study.ask()
        lr, fraction = (axis.suggest(trial, name) for name, axis in AXES.items())
        study.tell(trial, seen[SEED_LRS.index(lr), FRACTIONS.index(fraction)])
    return study


def points_of(study: optuna.Study) -> list[EarlierPoint]:
    """What a later study is told of."""
    told = told_of(study.trials, SPACE, direction=study.direction)
    return [EarlierPoint(params=each.params, value=each.values[0]) for each in told]


def regrets(study: optuna.Study, truth: Floats) -> Floats:
    """After each trial."""
    best, found = -np.inf, []
    for trial in study.trials:
        if trial.value is not None and trial.value > best:
            best = trial.value
            at = SEED_LRS.index(trial.params["seed_lr"])
            regret = truth.max() - truth[at, FRACTIONS.index(trial.params["explore_fraction"])]
        found.append(regret)
    return np.array(found)


def one(seed: int, *, moved: int, trials: int, ways: Sequence[Way]) -> dict[Way, Floats]:
    """The regrets of each way on one surface."""
    rng = np.random.default_rng([seed, moved])
    best, centre = rng.uniform(2, 6), SEED_LRS[int(rng.integers(1, 8))]
    side = rng.choice([-1, 1])
    if not 0 <= best + side * moved <= len(SEED_LRS) - 1:
        side = -side
    earlier, _ = surface(best + side * moved, level=93.8 - LOWER, rng=rng)
    before = search(earlier, trials=EARLIER, seed=seed, centre=centre, before=None, way="cold")
    seen, truth = surface(best, level=93.8, rng=rng)
    return {
        way: regrets(
            search(seen, trials=trials, seed=seed, centre=centre, before=before, way=way), truth
        )
        for way in ways
    }


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--moves", type=int, nargs="+", default=MOVES)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)
    after = [count for count in (2, 4, 6, 8, 12, 16, 24) if count <= chosen.trials]
    print("moved  search" + " " * 36 + "".join(f"{f'after {count}':>13}" for count in after))
    for moved in chosen.moves:
        found = [
            one(seed, moved=moved, trials=chosen.trials, ways=[*WAYS])
            for seed in range(chosen.searches)
        ]
        for way, told in WAYS.items():
            values = np.array([each[way] for each in found])[:, [count - 1 for count in after]]
            errors = values.std(axis=0, ddof=1) / np.sqrt(len(values))
            cells = zip(values.mean(axis=0), errors, strict=True)
            row = "".join(f"{f'{mean:.2f} ({error:.2f})':>13}" for mean, error in cells)
            print(f"{moved:>5}  {told:<42}{row}", flush=True)


if __name__ == "__main__":
    main()
