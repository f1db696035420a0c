"""Rules by which a search ends, on equal totals: regret against the mean over all random seeds.

    python -m benchmarks.race [--replays 40] [--family tuning|report|synthetic] [--tables DIR]

Searches and races replayed on tables of learning curves (see ``curve_tables``). A search has one
random seed of the table, all others are fresh. Totals are in whole runs and count all that is
trained: ours on shared trunks, plain Optuna's runs from scratch. Regret is the table's mean over
all its seeds at the recommended point, minus the best of those means.

- *today*: GP after a bracket, KneePruner, one seed, the best value recommended.
- *race*: ``run --total-runs`` (``knee_tune/stats/race.py``), and the same with other numbers.
- *plain*: TPE over a continuous LR (log) and fraction with a MedianPruner, the best value
  recommended; *again*: without a pruner for half of the total, then its best three again, as often
  as fits, with fresh seeds.

The synthetic surfaces are ridges whose best fraction is .5, .7 or .85, with the noise of a trunk
and of a run. Brackets hold 95 % intervals over replays; differences are paired.
"""

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from rich.console import Console
from rich.table import Table

from benchmarks.curve_tables import TABLES, CurveTable, Floats, load_tables
from benchmarks.pruners import axes
from benchmarks.replays import DIRECTIONS, Replay, View, interval, replay
from benchmarks.whole import centre
from knee_tune.pruners import KneePruner
from knee_tune.schedules.schedule import fitted_knee
from knee_tune.stats import race
from knee_tune.study.samplers import make_sampler

TOTALS = (8, 12, 16, 24, 40)
"""Whole runs."""

Spot = tuple[int, int]
"""Index of a seed LR and of a fraction."""


@dataclass
class Study:
    """What is known and was paid for: the runs of a search, then those with fresh seeds."""

    table: CurveTable
    search: Replay
    fresh: tuple[int, ...]
    """Random seeds that the search has not used."""
    default: Spot
    trunks: bool = True
    losses: dict[Spot, list[float]] = field(default_factory=dict)
    """Of the fresh seeds, by point."""
    spent: float = 0.0
    """Steps."""

    def searched(self, steps: float, *, within: bool) -> list[Spot]:
        """The complete points of the trials begun before so many ``steps``, or ended ``within``."""
        costs = self.search.trained_on_trunks if self.trunks else self.search.trained
        after = np.cumsum(costs)
        count = max(1, int(((after if within else after - costs) < steps * (1 + 1e-9)).sum()))
        self.spent = float(after[count - 1])
        trials = self.search.first(count).trials
        return list(dict.fromkeys(each.point for each in trials if each.complete)) or [self.default]

    def observed(self, spots: Sequence[Spot]) -> list[Spot]:
        """The best value of the search first."""
        return sorted(spots, key=lambda spot: float(self.search.view.losses[spot]))

    def cost(self, spots: Sequence[Spot]) -> float:
        """Steps of one more seed for each of them."""
        schedules = [self.table.schedules[row][column] for row, column in spots]
        return race.steps_to_train(
            race.NextRun(
                trunk=schedule.seed_lr if self.trunks else number,
                knee=schedule.knee_step,
                total=schedule.total_steps,
            )
            for number, schedule in enumerate(schedules)
        )

    def train(self, spots: Sequence[Spot]) -> None:
        """One more seed for each of them."""
        self.spent += self.cost(spots)
        for spot in spots:
            known = self.losses.setdefault(spot, [])
            known.append(float(self._final[self.fresh[len(known)]][spot]))

    @cached_property
    def _final(self) -> Floats:
        view = self.search.view
        values = self.table.curves[view.metric][..., -1]
        signed = values if DIRECTIONS[view.metric] == "minimize" else -values
        return np.where(np.isnan(signed), np.inf, signed)


Rule = Callable[[Study, float], Spot]
"""Takes the steps there are for all of it; the point that is recommended."""


def best_observed(study: Study, steps: float) -> Spot:
    """All for the search; its best value."""
    return study.observed(study.searched(steps, within=True))[0]


def best_again(study: Study, steps: float) -> Spot:
    """Half for the search; its best three with as many fresh seeds as fit."""
    best = study.observed(study.searched(steps / 2, within=True))[:3]
    seeds = int((steps - study.spent) / study.cost(best) + 1e-9)
    for _ in range(min(seeds, len(study.fresh))):
        study.train(best)
    return min(best, key=lambda spot: float(np.mean(study.losses.get(spot, [0.0]))))


@dataclass(frozen=True, kw_only=True)
class Race:
    """Search, then race."""

    share: float = race.SEARCH_SHARE
    candidates: int = race.CANDIDATES
    behind: float = race.BEHIND
    default: bool = True

    def __call__(self, study: Study, steps: float) -> Spot:
        """Who leads at the end."""
        race.BEHIND = self.behind  # which ``standing`` reads
        spots = study.observed(study.searched(self.share * steps, within=False))
        points = spots[: self.candidates]
        if self.default and study.default not in points:
            points.append(study.default)
        study.losses = {point: [] for point in points}

        def order() -> list[int]:
            return race.standing(
                [study.losses[point] for point in points],
                default=points.index(study.default) if study.default in points else None,
            )

        while len(max(study.losses.values(), key=len)) < len(study.fresh):
            racing = race.affordable(
                [points[index] for index in order()],
                study.cost,
                steps * (1 + 1e-9) - study.spent,
            )
            if not racing:
                break
            study.train(racing)
        return points[next(iter(order()), 0)]


TODAY, AGAIN, OURS = "today", "plain: TPE, its best 3 again", "race"
RULES: Mapping[str, tuple[str, Rule]] = {
    TODAY: ("today", best_observed),
    OURS: ("today", Race()),
    "  .35 to search": ("today", Race(share=0.35)),
    "  .65 to search": ("today", Race(share=0.65)),
    "  2 candidates": ("today", Race(candidates=2)),
    "  5 candidates": ("today", Race(candidates=5)),
    "  2 standard errors": ("today", Race(behind=2)),
    "  without the default": ("today", Race(default=False)),
    "plain: TPE, MedianPruner": ("plain", best_observed),
    AGAIN: ("plain unpruned", best_again),
}
"""By name: which search, and what is made of it."""

PLAIN = {"plain": MedianPruner, "plain unpruned": NopPruner}


def searches(view: View, number: int) -> dict[str, Replay]:
    """Each kind of search, long enough for the largest total of which it takes a share."""
    middle = centre(view.table, number)
    ours = make_sampler("gp", seed=number, axes=axes(view.table), start="bracket", centre=middle)
    plain = {
        name: replay(view, trials=60, sampler=TPESampler(seed=number), pruner=pruner())
        for name, pruner in PLAIN.items()
    }
    return plain | {TODAY: replay(view, trials=45, sampler=ours, pruner=KneePruner())}


def synthetic(name: str, *, fraction: float, run: float, seeds: int = 40) -> CurveTable:
    """A ridge of losses whose best point is at that ``fraction``, with the noise of runs."""
    lrs = tuple(0.005 * 1.5**index for index in range(9))
    fractions = tuple(round(0.1 * index, 1) for index in range(10))
    total, rng = 100, np.random.default_rng(int(100 * fraction))
    logs, shares = np.log(lrs)[:, None], np.array(fractions)
    ridge = logs - np.log(lrs[4]) - rng.uniform(-0.8, 0.8) + (shares - fraction)
    noise = (
        rng.normal(0, 0.3, (seeds, 1, 1))
        + rng.normal(0, run, (seeds, len(lrs), 1))  # of a trunk
        + rng.normal(0, run, (seeds, len(lrs), len(fractions)))
    )
    losses = 0.55 * ridge**2 + 1.4 * (shares - fraction) ** 2 + noise
    return CurveTable(
        name=name,
        seed_lrs=lrs,
        fractions=fractions,
        steps=(total,),
        schedules=tuple(
            tuple(
                fitted_knee(seed_lr=lr, total_steps=total, explore_steps=round(total * share))
                for share in fractions
            )
            for lr in lrs
        ),
        curves={"loss": losses[..., None]},
    )


def tables_of(family: str, *, folder: Path) -> list[CurveTable]:
    """The tables of a family; UserError if there is none."""
    if family != "synthetic":
        return load_tables(family, folder=folder)
    return [
        synthetic("ridge .5", fraction=0.5, run=0.3),
        synthetic("ridge .85", fraction=0.85, run=0.3),
        synthetic("ridge .7, noisy", fraction=0.7, run=0.5),
    ]


def regrets(table: CurveTable, metric: str, *, replays: int) -> dict[str, Floats]:
    """Of every rule: (replays, totals)."""
    seeds = len(table.curves[metric])
    found: dict[str, list[list[float]]] = {name: [] for name in RULES}
    for number in range(replays):
        order = np.random.default_rng([number, 1]).permutation(seeds).tolist()
        view = View(table=table, metric=metric, seeds=(order[0],))
        done = searches(view, number)
        truth = view.true_losses
        worst = truth[np.isfinite(truth)].max()
        half = int(np.abs(np.array(table.fractions) - 0.5).argmin())
        default = table.seed_lrs.index(centre(table, number)), half
        for name, (kind, rule) in RULES.items():
            row = []
            for total in TOTALS:
                study = Study(
                    table=table,
                    search=done[kind],
                    fresh=tuple(order[1:]),
                    default=default,
                    trunks=kind not in PLAIN,
                )
                chosen = rule(study, total * view.budget)
                row.append(float(min(truth[chosen], worst) - truth.min()))
            found[name].append(row)
    return {name: np.array(rows) for name, rows in found.items()}


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replays", type=int, default=40)
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    parser.add_argument("--family", choices=["tuning", "report", "synthetic"], default="report")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ExperimentalWarning)
    console = Console(width=200)
    for table in tables_of(chosen.family, folder=chosen.tables):
        for metric in table.curves:
            found = regrets(table, metric, replays=chosen.replays)
            console.print(printed(table, metric, found))


def printed(table: CurveTable, metric: str, found: Mapping[str, Floats]) -> Table:
    """Mean regrets, and differences to the rivals at 12 and 24 whole runs."""
    any_rule = next(iter(found.values()))
    shown = Table(
        title=f"{table.name}: {metric}, {len(table.curves[metric])} random seeds, "
        f"{len(any_rule)} replays",
        title_justify="left",
    )
    shown.add_column("rule")
    for total in TOTALS:
        shown.add_column(f"regret at {total}", justify="right")
    rivals = [(rival, total) for rival in (TODAY, AGAIN) for total in (12, 24)]
    for rival, total in rivals:
        shown.add_column(f"less {rival.split(': ')[-1]} at {total}", justify="right")
    for name, rows in found.items():
        differences = [
            interval((rows - found[rival])[:, TOTALS.index(total)].tolist())
            for rival, total in rivals
        ]
        shown.add_row(
            name,
            *(f"{mean:.4f}" for mean in rows.mean(axis=0)),
            *(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in differences),
        )
    return shown


if __name__ == "__main__":
    main()
