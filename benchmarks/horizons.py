"""What several horizons together save, and by which of two ways: real searches on digits.

    python -m benchmarks.horizons [--searches 6] [--trials 8]

Four budgets, each twice the one before. In a search of its own every budget begins at a seed LR
that somebody would have thought of: a point of the grid at random. With trunks it goes on from
those of the shorter budgets, which lie in the same home; with a warm start its bracket begins at
the best seed LR of the budget before. ``knee-tune horizons`` does both. Each search has a random
seed of its own, which all ways share: a point has the same value whoever trains it.

Steps are those trained, over all budgets: for all trials, and until each budget has a trial that is
as good as the best that any of the ways found, within :data:`NOISE`. A budget that never has one
counts with all its trials.
"""

import argparse
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from knee_tune.cli.watch import PlainWatcher
from knee_tune.commands.home import Home, Places
from knee_tune.commands.horizons import HorizonsSearch, read_budgets, resolve_horizons
from knee_tune.commands.run import StudyStart, run_study
from knee_tune.commands.workers import GroupOptions, Looked, look_at
from knee_tune.records.study import StudyRecord
from knee_tune.study.events import Watcher

BUDGETS = "4,8,16,32"
SETTINGS = ("recipe.batch_size=32",)
"""25 steps an epoch."""

NOISE = 1.0
"""Points of accuracy: about the standard error of one over the 900 validation examples."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to search all budgets."""

    trunks: bool = False
    warm_start: bool = False
    start: str = "bracket"


WAYS = {
    "separate, six random trials first": Way(start="random"),
    "separate": Way(),
    "trunks": Way(trunks=True),
    "warm start": Way(warm_start=True),
    "horizons": Way(trunks=True, warm_start=True),
}
REFERENCE = "separate"


def silently(start: StudyStart) -> AbstractContextManager[Watcher]:
    """Watch without a word."""
    return nullcontext(PlainWatcher(Console(quiet=True), start))


@contextmanager
def at_home(looked: Looked, folder: Path) -> Iterator[tuple[Looked, Places]]:
    """The same worker groups, for a home of its own."""
    home = Home(folder)
    with home.held(logs=home.logs("searches") / "none") as held:
        yield (
            replace(looked, held=held),
            Places.of(home, storage=None, tracking_uri="none"),
        )


def searched(
    way: Way, search: HorizonsSearch, centres: Sequence[float], looked: Looked, folder: Path
) -> list[StudyRecord]:
    """Every budget's study, searched in that way."""
    records: list[StudyRecord] = []
    for number, (spec, recipe) in enumerate(search.studies.values()):
        best = records[-1].best if records and way.warm_start else None
        own = centres[0 if way.warm_start else number]
        recipe = recipe.model_copy(update={"seed_lr": own})
        changed = spec.model_copy(
            update={
                "recipe": recipe.model_dump(mode="json"),
                "start": way.start,
                "centre": best.seed_lr if best else None,
            }
        )
        home = folder / ("shared" if way.trunks else spec.name)
        with at_home(looked, home) as (here, places):
            summary = run_study(
                changed,
                recipe,
                places,
                GroupOptions(),
                timeout=None,
                register=False,
                watch=silently,
                looked=here,
            )
        records.append(summary.record)
    return records


def steps_until(record: StudyRecord, target: float) -> tuple[int, bool]:
    """Steps trained until a trial is as good as ``target``, or all; whether one is."""
    steps = 0
    for trial in record.trials:
        steps += trial.steps_trained
        if trial.state == "complete" and trial.value is not None and trial.value >= target:
            return steps, True
    return steps, False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a way of searching came to, with one random seed of the search."""

    trained: int
    until_as_good: int
    missed: int
    """Budgets without a trial as good."""
    regret: float
    """Mean over the budgets of the best value found by any way minus its own."""
    settings: str


def compared(by_way: Mapping[str, list[StudyRecord]]) -> dict[str, Found]:
    """All ways beside the best that any of them found at each budget."""
    bests = [
        max(
            (record.best for record in records if record.best is not None),
            key=lambda trial: trial.value or -math.inf,
        )
        for records in zip(*by_way.values(), strict=True)
    ]
    tops = [best.value or 0.0 for best in bests]
    found = {}
    for name, records in by_way.items():
        until = [
            steps_until(record, top - NOISE) for record, top in zip(records, tops, strict=True)
        ]
        own = [record.best for record in records if record.best is not None]
        found[name] = Found(
            trained=sum(record.steps.trained for record in records),
            until_as_good=sum(steps for steps, _ in until),
            missed=sum(not reached for _, reached in until),
            regret=statistics.fmean(
                top - (each.value or 0.0) for top, each in zip(tops, own, strict=True)
            ),
            settings=", ".join(f"{each.seed_lr:g} {each.explore_fraction:.0%}" for each in own),
        )
    return found


def main() -> None:
    """Search in every way, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=6, help="random seeds of the searches")
    parser.add_argument("--trials", type=int, default=8, help="of every budget")
    options = parser.parse_args()
    console = Console(width=120)
    every: list[dict[str, Found]] = []
    with tempfile.TemporaryDirectory() as place:
        first = resolve_horizons(task="digits", budgets=read_budgets(BUDGETS), settings=SETTINGS)
        spec, lrs = first.spec, first.spec.seed_lrs
        looking = look_at(
            Home(Path(place) / "look"), spec.task, spec.recipe, GroupOptions(), logs="look"
        )
        with looking as looked:
            for seed in range(1, options.searches + 1):
                search = resolve_horizons(
                    task="digits",
                    budgets=read_budgets(BUDGETS),
                    trials=options.trials,
                    seed=seed,
                    settings=(*SETTINGS, f"space.seed_lr.values={[*lrs]}"),
                )
                centres = random.Random(seed).choices(lrs, k=len(search.studies))
                by_way = {
                    name: searched(way, search, centres, looked, Path(place) / f"{seed}-{name}")
                    for name, way in WAYS.items()
                }
                every.append(compared(by_way))
                console.print(f"search {seed}, begun at {', '.join(f'{lr:g}' for lr in centres)}")
                for name, found in every[-1].items():
                    console.print(f"  {name}: {found.settings}")
    console.print(table_of(every))


def table_of(every: Sequence[Mapping[str, Found]]) -> Table:
    """A line for every way: means over the searches, and ratios of their sums."""
    table = Table(box=None, pad_edge=False)
    for column in ("way", "steps", "of separate", "until as good", "of separate", "missed"):
        table.add_column(column, justify="left" if column == "way" else "right")
    table.add_column("points behind the best", justify="right")
    usual = [each[REFERENCE] for each in every]
    for name in WAYS:
        own = [each[name] for each in every]
        trained, until = sum(f.trained for f in own), sum(f.until_as_good for f in own)
        table.add_row(
            name,
            f"{trained / len(own):,.0f}",
            f"{trained / sum(f.trained for f in usual):.2f}",
            f"{until / len(own):,.0f}",
            f"{until / sum(f.until_as_good for f in usual):.2f}",
            f"{sum(f.missed for f in own)} of {len(own) * len(BUDGETS.split(','))}",
            f"{statistics.fmean(f.regret for f in own):.2f}",
        )
    return table


if __name__ == "__main__":
    main()
