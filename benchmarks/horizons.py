"""What several horizons together save, and by which of two ways: searches replayed on digits.

    python -m benchmarks.horizons [--replays 10]

Four budgets, each twice the one before. The grid of each is trained once, as one batched model, and
searches of eight trials are replayed on it: real samplers, without a pruner, one random seed each.

In a search of its own every budget begins where somebody would have begun: at the middle of the
seed LRs, moved at random by up to :data:`SHIFT` of them. With a warm start the first one alone
does, and each next one begins at the best seed LR of the budget before. Trunks are those of one
budget, or of all of them. ``knee-tune horizons`` has a warm start and the trunks of all.

Steps are those trained, over all budgets, for all trials; and until each budget has a trial within
:data:`NOISE` of the best point for its random seed (a budget without one counts with all its
trials). Regret is of the means over all random seeds: the best point's minus the winner's.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.replays import interval
from knee_tune.commands.opened import resolve_asked
from knee_tune.config.study import Start
from knee_tune.jobs import run_job
from knee_tune.plans.plan import Replica, TaskFacts, TaskOrder
from knee_tune.plans.planner import knee_schedule, train_plan
from knee_tune.study.samplers import Axes, axes_of, make_sampler
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Decision, Report

BUDGETS = (4, 8, 16, 32)
SETTINGS = ("recipe.batch_size=32", "space.seed_lr.high=0.4")
"""25 steps an epoch; seed LRs wide enough for the shortest budget."""

SEEDS, TRIALS, SHIFT = 3, 8, 2

NOISE = 1.0
"""Points of accuracy: about the standard error of one over the 900 validation examples."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What every point of one budget comes to, and which steps its knees are."""

    axes: Axes
    total_steps: int
    values: Mapping[Point, tuple[float, ...]]
    """Accuracy by random seed."""

    def knee(self, point: Point) -> int:
        """The step at which a branch leaves its trunk."""
        return round(point[1] * self.total_steps)

    def means(self, point: Point) -> float:
        """Over all random seeds."""
        return statistics.fmean(self.values[point])

    @property
    def best(self) -> float:
        """The highest mean."""
        return max(map(self.means, self.values))


class Alone(Channel):
    """Nobody's line."""

    def report(self, report: Report) -> Decision:
        """Go on."""
        return Decision(stop=False)

    def progress(self, step: int) -> None:
        """Say nothing."""

    def line(self, text: str) -> None:
        """Say nothing."""


def trained(epochs: int, place: Path) -> Surface:
    """The surface of one budget: every point and random seed a replica of one batched model."""
    spec = resolve_asked(
        task="digits", sampler="grid", settings=(*SETTINGS, f"recipe.epochs={epochs}")
    )
    recipe = spec.typed_recipe
    order = TaskOrder(task="digits", recipe=spec.recipe, seed=1, data_dir=place, log_dir=place)
    task = task_entry("digits").build(spec.recipe, data_dir=place, seed=1)
    facts = TaskFacts(
        steps_per_epoch=task.steps_per_epoch(Group()),
        data_fingerprint="",
        parameters=0,
        examples={},
    )
    replicas = {
        (lr, fraction): [
            Replica(
                seed=seed,
                schedule=knee_schedule(recipe, facts, seed_lr=lr, explore_fraction=fraction),
            )
            for seed in range(1, SEEDS + 1)
        ]
        for lr in spec.seed_lrs
        for fraction in spec.explore_fractions
    }
    every = [each for of_point in replicas.values() for each in of_point]
    plan = train_plan(
        order,
        recipe,
        facts,
        schedule=every[0].schedule,
        replicas=every,
        checkpoint_dir=place / str(epochs),
    )
    plan.checkpoint_dir.mkdir()
    ends = iter(run_job(plan, Group(), Alone()).replicas)
    return Surface(
        axes=axes_of(spec),
        total_steps=plan.total_steps,
        values={  # one that diverged has learned nothing
            point: tuple(next(ends).metrics.get("valid_accuracy", 0.0) for _ in of_point)
            for point, of_point in replicas.items()
        },
    )


def searched(
    surface: Surface, *, seed: int, replicate: int, start: Start, default: float, centre: float
) -> list[Point]:
    """The points that a search asks for; ``default``: the recipe's own seed LR, tried first."""
    sampler = make_sampler("gp", seed=seed, axes=surface.axes, start=start, centre=centre)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"seed_lr": default, "explore_fraction": 0.5})
    points = []
    for _ in range(TRIALS):
        trial = study.ask()
        lr, fraction = (axis.suggest(trial, name) for name, axis in surface.axes.items())
        points.append((float(lr), float(fraction)))
        study.tell(trial, surface.values[points[-1]][replicate])
    return points


class Trunks:
    """Steps up to which the trunk of each seed LR is kept."""

    def __init__(self) -> None:
        self._longest: dict[float, int] = {}

    def train(self, surface: Surface, point: Point) -> int:
        """The steps of one run; its trunk is kept up to its knee."""
        knee, longest = surface.knee(point), self._longest.get(point[0], 0)
        self._longest[point[0]] = max(knee, longest)
        return surface.total_steps - min(knee, longest)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What four searches came to."""

    steps: int
    until_as_good: int
    missed: int
    regret: float


def accounted(
    surfaces: Sequence[Surface], searches: Sequence[list[Point]], *, replicate: int, shared: bool
) -> Found:
    """What the searches cost, with trunks of one budget, or ``shared`` by all."""
    trunks, steps, until, missed, regrets = Trunks(), 0, 0, 0, []
    for surface, points in zip(surfaces, searches, strict=True):
        trunks = trunks if shared else Trunks()
        goal = max(values[replicate] for values in surface.values.values()) - NOISE
        reached = False
        for point in points:
            cost = trunks.train(surface, point)
            steps += cost
            until += 0 if reached else cost
            reached |= surface.values[point][replicate] >= goal
        missed += not reached
        winner = max(points, key=lambda point: surface.values[point][replicate])
        regrets.append(surface.best - surface.means(winner))
    return Found(steps=steps, until_as_good=until, missed=missed, regret=statistics.fmean(regrets))


def replayed(surfaces: Sequence[Surface], number: int) -> Iterator[tuple[str, Found]]:
    """One replay in every way."""
    lrs = sorted({lr for lr, _ in surfaces[0].values})
    replicate, draw = number % SEEDS, random.Random(number)
    middle = len(lrs) // 2
    centres = [lrs[middle + draw.randint(-SHIFT, SHIFT)] for _ in surfaces]

    def each(start: Start, *, warm: bool) -> list[list[Point]]:
        searches: list[list[Point]] = []
        for surface, own in zip(surfaces, centres, strict=True):
            default = centres[0] if warm else own
            centre = default
            if warm and searches:
                before = surfaces[len(searches) - 1].values
                centre = max(searches[-1], key=lambda point: before[point][replicate])[0]
            found = searched(
                surface,
                seed=number,
                replicate=replicate,
                start=start,
                default=default,
                centre=centre,
            )
            searches.append(found)
        return searches

    ways: tuple[tuple[str, Start, bool], ...] = (
        ("six random trials first", "random", False),
        ("bracket", "bracket", False),
        ("bracket, warm start", "bracket", True),
    )
    for name, start, warm in ways:
        searches = each(start, warm=warm)
        for shared in (False, True):
            found = accounted(surfaces, searches, replicate=replicate, shared=shared)
            yield f"{name}{', shared trunks' if shared else ''}", found


def table_of(every: Sequence[Mapping[str, Found]], *, beside: str) -> Table:
    """A line for every way; ratios are of sums, their intervals over replays."""
    table = Table(box=None, pad_edge=False)
    columns = ("way", "steps", "of separate", "until as good", "of separate", "missed", "regret")
    for column in columns:
        table.add_column(column, justify="left" if column == "way" else "right")
    for name in every[0]:
        own = [each[name] for each in every]
        usual = [each[beside] for each in every]
        table.add_row(
            name,
            f"{statistics.fmean(f.steps for f in own):,.0f}",
            ratio([f.steps for f in own], [f.steps for f in usual]),
            f"{statistics.fmean(f.until_as_good for f in own):,.0f}",
            ratio([f.until_as_good for f in own], [f.until_as_good for f in usual]),
            f"{sum(f.missed for f in own) / len(own) / len(BUDGETS):.0%}",
            "{:.2f} ({:.2f}-{:.2f})".format(*interval([f.regret for f in own])),
        )
    return table


def ratio(own: Sequence[int], usual: Sequence[int]) -> str:
    """That of the sums, and its 95 % interval from resampled replays."""
    draw = random.Random(0)
    drawn = []
    for _ in range(2000):
        chosen = draw.choices(range(len(own)), k=len(own))
        drawn.append(sum(own[i] for i in chosen) / sum(usual[i] for i in chosen))
    drawn.sort()
    return f"{sum(own) / sum(usual):.2f} ({drawn[50]:.2f}-{drawn[-51]:.2f})"


def main() -> None:
    """Train the grids, replay, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replays", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        surfaces = [trained(epochs, Path(place)) for epochs in BUDGETS]
    console = Console(width=140)
    for epochs, surface in zip(BUDGETS, surfaces, strict=True):
        lr, fraction = max(surface.values, key=surface.means)
        console.print(f"{epochs} epochs: best mean {surface.best:.2f} at {lr:g}, {fraction:.0%}")
    every: list[Mapping[str, Found]] = []
    for number in range(options.replays):
        every.append(dict(replayed(surfaces, number)))
        console.print(f"{len(every)} of {options.replays} replays")
    for beside in ("six random trials first", "bracket"):
        console.print(f"\nseparate: {beside}")
        console.print(table_of(every, beside=beside))


if __name__ == "__main__":
    main()
