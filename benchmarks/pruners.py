"""Pruners against each other, on replayed searches.

    python -m benchmarks.pruners [--replays 40] [--trials 40] [--tables DIR] [--family tuning]

Every pruner sees the same searches: a table of learning curves (see ``curve_tables``), one or
three of its random seeds, and a random order of its points. The family ``tuning`` compares
settings of KneePruner, which is where its defaults are from; on the ``report`` tables, which tell
how the pruners do, nothing was chosen.

- *lost* is what pruning cost: the value recommended minus the best that was asked for, as the
  search itself measured them. *regret* is against the table's best mean over all random seeds, so
  it has in it what a single seed's noise costs without any pruning too.
- *epochs* is the share that was trained, of those of the same search unpruned and sharing no
  trunks; *on trunks* the share when trunks are shared.
- *best pruned*: how often the best point that was asked for was pruned.
- *fraction*: best explore fraction found minus the best one asked for, mean over the seed LRs.
- *at 4, 6, 8* is the regret of a search that ends when it has cost as much as 4, 6, 8 whole runs,
  trunks shared. A search that was over before stays where it was.

Brackets hold 95 % intervals over replays.
"""

import argparse
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from rich.console import Console
from rich.table import Table

from benchmarks.curve_tables import METRICS, TABLES, CurveTable, load_tables
from benchmarks.replays import Replay, View, interval, replay
from knee_tune.pruners import KneePruner
from knee_tune.study.pruners import PruningBrackets, make_pruner
from knee_tune.study.samplers import Axis, make_sampler

MakePruner = Callable[[View], BasePruner]


def _knee(**settings: Any) -> MakePruner:
    return lambda view: KneePruner(**settings)


KNEE: dict[str, MakePruner] = {
    "KneePruner": _knee(),
    "KneePruner, align lr": _knee(align="lr"),
    "KneePruner, align progress": _knee(align="progress"),
}

OTHERS: dict[str, MakePruner] = {
    "MedianPruner": lambda view: MedianPruner(),
    "MedianPruner, second half": lambda view: make_pruner(
        "median", total_steps=view.table.total_steps
    ),
    "PercentilePruner(25)": lambda view: PercentilePruner(25.0),
    "HyperbandPruner": lambda view: PruningBrackets(
        HyperbandPruner(min_resource=view.table.steps[0], max_resource=view.budget)
    ),
    "SuccessiveHalvingPruner": lambda view: SuccessiveHalvingPruner(
        min_resource=view.table.steps[0]
    ),
}
"""Optuna's own, with its own defaults where nothing else is said."""

WILCOXON = "WilcoxonPruner, evaluations as instances"
"""It takes half a minute per replay. Random seeds cannot be its instances where there are three:
the smallest p-value of three pairs is 0.125, and it prunes below 0.1."""

UNPRUNED = "no pruner"

SETTINGS: dict[str, MakePruner] = {
    f"{align}, best {percentile} %, patience {patience}": _knee(
        align=align, percentile=percentile, patience=patience
    )
    for align, percentile, patience in (
        *(("step", percentile, patience) for percentile in (25, 50) for patience in (1, 2, 3, 4)),
        *(("lr", 10, 1), ("lr", 50, 1), ("lr", 75, 2), ("progress", 10, 1), ("progress", 50, 2)),
    )
}
"""What the defaults of KneePruner were chosen among, on the tuning tables."""

SPENDS = (4, 6, 8)
"""Runs' worth of steps, trunks shared, at which searches are compared."""


def views(table: CurveTable, metric: str, *, replicates: int, replays: int) -> list[View]:
    """One for each replay: random seeds of the table, each about as often."""
    seeds = len(table.curves[metric])
    draw = np.random.default_rng(7)
    return [
        View(
            table=table,
            metric=metric,
            seeds=(
                (number % seeds,)
                if replicates == 1
                else tuple(int(i) for i in draw.choice(seeds, size=replicates, replace=False))
            ),
        )
        for number in range(replays)
    ]


def replays_of(
    make: MakePruner, seen: Iterable[View], *, sampler: str, trials: int
) -> list[Replay]:
    """The same searches, if the sampler is random, whatever the pruner."""
    return [
        replay(
            view,
            trials=trials,
            sampler=make_sampler(sampler, seed=number, axes=axes(view.table)),
            pruner=make(view),
            name=str(number),
        )
        for number, view in enumerate(seen)
    ]


def axes(table: CurveTable) -> Mapping[str, Axis]:
    """The table's grid, as knee-tune's samplers take it."""
    return {
        "seed_lr": Axis(points=table.seed_lrs, log=True),
        "explore_fraction": Axis(points=table.fractions),
    }


def contest(
    seen: Sequence[View], pruners: Mapping[str, MakePruner], *, sampler: str, trials: int
) -> dict[str, list[Replay]]:
    """All pruners on the same searches."""
    return {
        name: replays_of(make, seen, sampler=sampler, trials=trials)
        for name, make in {**pruners, UNPRUNED: lambda view: NopPruner()}.items()
    }


def fewer(unpruned: Iterable[Replay], pruned: Iterable[Replay]) -> list[Replay]:
    """Unpruned searches that end where they have cost as much as the pruned ones."""
    return [
        whole.within(other.trained.sum()) for whole, other in zip(unpruned, pruned, strict=True)
    ]


def report(title: str, outcomes: Mapping[str, list[Replay]]) -> Table:
    """One line for each pruner; the first one's cost is what fewer unpruned trials may cost."""
    printed = Table(title=title, title_justify="left")
    for column in ("pruner", "lost", "regret"):
        printed.add_column(column)
    for column in ("epochs", "on trunks", "best pruned", "fraction", *map(_spent, SPENDS)):
        printed.add_column(column, justify="right")
    knee = next(iter(outcomes))
    dear = {f"{UNPRUNED}, at the cost of {knee}": fewer(outcomes[UNPRUNED], outcomes[knee])}
    for name, replays in {**outcomes, **dear}.items():
        printed.add_row(
            name,
            _interval(replay.lost for replay in replays),
            _interval(replay.regret for replay in replays),
            f"{np.mean([replay.share for replay in replays]):.2f}",
            f"{np.mean([replay.share_on_trunks for replay in replays]):.2f}",
            f"{np.mean([replay.best_pruned for replay in replays]):.0%}",
            f"{np.mean([replay.fraction_bias for replay in replays]):+.2f}",
            *("" if name in dear else f"{_regret_at(replays, runs):.4f}" for runs in SPENDS),
        )
    return printed


def _regret_at(replays: Iterable[Replay], runs: float) -> float:
    return float(
        np.mean(
            [replay.within(runs * replay.view.budget, trunks=True).regret for replay in replays]
        )
    )


def _spent(runs: float) -> str:
    return f"at {runs:g}"


def _interval(values: Iterable[float]) -> str:
    mean, low, high = interval(list(values))
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replays", type=int, default=40)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--family", choices=["report", "tuning", "quick"], default="report")
    parser.add_argument("--sampler", choices=["random", "tpe", "gp"], default="random")
    parser.add_argument("--replicates", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--slow", action="store_true", help="WilcoxonPruner as well")
    parser.add_argument("--table", help="only the one of this name")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="only these")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", ExperimentalWarning)
    pruners = {**KNEE, **OTHERS}
    if chosen.family == "tuning":
        pruners = {**SETTINGS, "MedianPruner": OTHERS["MedianPruner"]}
    if chosen.slow:
        pruners[WILCOXON] = lambda view: WilcoxonPruner()
    console = Console(width=170)
    for table in load_tables(chosen.family, folder=chosen.tables, only=chosen.table):
        for metric in chosen.metrics or table.curves:
            for replicates in chosen.replicates:
                began = time.perf_counter()
                seen = views(table, metric, replicates=replicates, replays=chosen.replays)
                outcomes = contest(seen, pruners, sampler=chosen.sampler, trials=chosen.trials)
                title = (
                    f"{table.name}: {metric}, {replicates} of {len(table.curves[metric])} random "
                    f"seeds, {chosen.replays} replays of {chosen.trials} trials, "
                    f"{chosen.sampler} order ({time.perf_counter() - began:.0f} s)"
                )
                console.print(report(title, outcomes))
    console.print(f"{platform.processor() or platform.machine()}, Optuna {optuna.__version__}")


if __name__ == "__main__":
    main()
