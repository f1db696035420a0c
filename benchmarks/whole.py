"""The whole against plain Optuna: steps trained until a search is as good.

    python -m benchmarks.whole [--replays 40] [--tables DIR]

Searches replayed on the report tables (see ``curve_tables``), one random seed each.

- plain: Optuna's TPE over a continuous LR (log) and fraction, and its MedianPruner, both with
  Optuna's defaults; every trial is trained from scratch. A point between those of the table has the
  curve of the nearest one. ``given a start``: the same, and its first three trials are the centre
  and both sides at 50 %, as far from it as a bracket's.
- knee-tune: GP over the table's grid after a bracket, KneePruner, trunks shared; the same with TPE,
  and with one or the other left out.

The centre is what somebody would have thought of: the middle of the table's seed LRs, moved at
random by up to :data:`SHIFT` of them for every replay.

Regret is the value of the best complete trial minus the best of the table, for the random seed
that the search has. Steps are counted in whole runs. The ratio is that of the steps after which the
mean regret is as low as plain Optuna's after so many; brackets hold 95 % over replays.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from rich.console import Console
from rich.table import Table

from benchmarks.curve_tables import METRICS, TABLES, CurveTable, Floats, load_tables
from benchmarks.pruners import axes, views
from benchmarks.replays import Replay, View, replay
from knee_tune.pruners import KneePruner
from knee_tune.study.bracket import RATIO
from knee_tune.study.samplers import make_sampler

LEVELS = (4, 8, 12, 16, 24)
"""Whole runs that plain Optuna spends."""

SHIFT = 2
"""Points of the grid that a centre may lie beside the middle."""

COSTS = np.arange(1, 41, 0.25)
"""Whole runs at which searches are looked at."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to search."""

    sampler: Callable[[CurveTable, int], BaseSampler]
    pruner: Callable[[], BasePruner]
    trials: int
    trunks: bool
    queued: Callable[[CurveTable, int], list[dict[str, float]]] = lambda table, seed: []


def centre(table: CurveTable, seed: int) -> float:
    """The seed LR that a search begins with."""
    shift = int(np.random.default_rng([seed, 0]).integers(-SHIFT, SHIFT + 1))
    return table.seed_lrs[len(table.seed_lrs) // 2 + shift]


def _random_gp(table: CurveTable, seed: int) -> BaseSampler:
    return make_sampler("gp", seed=seed, axes=axes(table))


def _plain_tpe(table: CurveTable, seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _gp(table: CurveTable, seed: int) -> BaseSampler:
    return make_sampler(
        "gp", seed=seed, axes=axes(table), start="bracket", centre=centre(table, seed)
    )


def _tpe(table: CurveTable, seed: int) -> BaseSampler:
    return make_sampler(
        "tpe", seed=seed, axes=axes(table), start="bracket", centre=centre(table, seed)
    )


def _centre_and_sides(table: CurveTable, seed: int) -> list[dict[str, float]]:
    middle = centre(table, seed)
    within = table.seed_lrs[0], table.seed_lrs[-1]
    lrs = (middle, *(float(np.clip(lr, *within)) for lr in (middle / RATIO, middle * RATIO)))
    return [{"seed_lr": lr, "explore_fraction": 0.5} for lr in lrs]


PLAIN, GIVEN = "plain: TPE, MedianPruner", "  given a start"
CONTENDERS: Mapping[str, Contender] = {
    PLAIN: Contender(sampler=_plain_tpe, pruner=MedianPruner, trials=80, trunks=False),
    GIVEN: Contender(
        sampler=_plain_tpe,
        pruner=MedianPruner,
        trials=80,
        trunks=False,
        queued=_centre_and_sides,
    ),
    "plain: TPE, no pruner": Contender(
        sampler=_plain_tpe, pruner=NopPruner, trials=40, trunks=False
    ),
    "knee-tune: GP, KneePruner, trunks": Contender(
        sampler=_gp, pruner=KneePruner, trials=40, trunks=True
    ),
    "  random start": Contender(sampler=_random_gp, pruner=KneePruner, trials=40, trunks=True),
    "  without a pruner": Contender(sampler=_gp, pruner=NopPruner, trials=40, trunks=True),
    "  without trunks": Contender(sampler=_gp, pruner=KneePruner, trials=40, trunks=False),
    "knee-tune: TPE, KneePruner, trunks": Contender(
        sampler=_tpe, pruner=KneePruner, trials=60, trunks=True
    ),
    "  no pruner": Contender(sampler=_tpe, pruner=NopPruner, trials=60, trunks=True),
    "  MedianPruner": Contender(sampler=_tpe, pruner=MedianPruner, trials=60, trunks=True),
}


def regrets(done: Replay, *, trunks: bool) -> Floats:
    """Regret after each of ``COSTS``; before the first complete trial that of a typical point."""
    losses, best = done.view.losses, done.view.losses.min()
    spent = np.cumsum(done.trained_on_trunks if trunks else done.trained) / done.view.budget
    found = np.minimum.accumulate(
        [losses[trial.point] if trial.complete else np.inf for trial in done.trials]
    )
    start = float(np.median(losses))
    reached = np.searchsorted(spent, COSTS * (1 + 1e-9), side="right") - 1
    values = np.where(reached >= 0, found[np.maximum(reached, 0)], np.inf)
    return np.asarray(np.where(np.isinf(values), start, values) - best, dtype=float)


def steps_at_equal_regret(ours: Floats, plain: Floats, level: float) -> float:
    """Of mean regrets (replays, costs): steps until ours is as low as ``plain``'s at ``level``.

    Over the steps after which ``plain`` itself is; infinite if we never are.
    """
    aim = plain.mean(axis=0)[np.searchsorted(COSTS, level)]
    first, theirs = (
        COSTS[np.append(np.flatnonzero(found.mean(axis=0) <= aim), -1)[0]]
        for found in (ours, plain)
    )
    never = ours.mean(axis=0).min() > aim
    return float("inf") if never else float(first / theirs)


def ratio(ours: Floats, plain: Floats, level: float, *, draws: int = 1000) -> str:
    """With its 95 % interval: replays are drawn in pairs, as both have the same random seeds."""
    rng = np.random.default_rng(0)
    drawn = [
        steps_at_equal_regret(ours[rows], plain[rows], level)
        for rows in rng.integers(len(ours), size=(draws, len(ours)))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return f"{steps_at_equal_regret(ours, plain, level):.2f} [{low:.2f}, {high:.2f}]"


def contest(seen: Sequence[View]) -> dict[str, Floats]:
    """Regrets of every contender, shape (replays, costs)."""
    known: dict[tuple[object, ...], list[Replay]] = {}
    outcomes = {}
    for name, contender in CONTENDERS.items():
        key = (contender.sampler, contender.pruner, contender.trials, contender.queued)
        if key not in known:
            known[key] = [
                replay(
                    view,
                    trials=contender.trials,
                    sampler=contender.sampler(view.table, number),
                    pruner=contender.pruner(),
                    queued=contender.queued(view.table, number),
                )
                for number, view in enumerate(seen)
            ]
        outcomes[name] = np.array([regrets(done, trunks=contender.trunks) for done in known[key]])
    return outcomes


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replays", type=int, default=40)
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--family", choices=["report", "tuning", "quick"], default="report")
    parser.add_argument("--table", help="only the one of this name")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="only these")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # GP: three times as fast
    warnings.simplefilter("ignore", ExperimentalWarning)
    console = Console(width=200)
    for table in load_tables(chosen.family, folder=chosen.tables, only=chosen.table):
        for metric in chosen.metrics or table.curves:
            began = time.perf_counter()
            outcomes = contest(views(table, metric, replicates=1, replays=chosen.replays))
            took = time.perf_counter() - began
            for rival in (PLAIN, GIVEN):
                printed = Table(
                    title=f"{table.name}: {metric}, {len(table.curves[metric])} random seeds, "
                    f"{chosen.replays} replays ({took:.0f} s); ratios to {rival.strip()}",
                    title_justify="left",
                )
                printed.add_column("search")
                for level in LEVELS:
                    printed.add_column(f"regret at {level}", justify="right")
                for level in LEVELS:
                    printed.add_column(f"steps / its {level}", justify="right")
                for name, found in outcomes.items():
                    printed.add_row(
                        name,
                        *(
                            f"{found.mean(axis=0)[np.searchsorted(COSTS, level)]:.4f}"
                            for level in LEVELS
                        ),
                        *(ratio(found, outcomes[rival], level) for level in LEVELS),
                    )
                console.print(printed)


if __name__ == "__main__":
    main()
