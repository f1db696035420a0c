"""What sharing trunks costs and what it saves, measured on real training.

    python -m benchmarks.trunks [--pairs 8] [--data DIR]

Cost: the same run with and without its trunk kept, side by side in one process; both train every
step, so the difference is what it takes to keep checkpoints at all explore fractions. Then what it
takes to start from one. Last, both as a share of the training time of Table 16's design, which
keeps four checkpoints of every trunk and loads three.

Savings: studies driven as ``knee-tune run`` does, by what they recorded; few epochs, on which the
ratio does not depend.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.orchestration import Nobody, study_places
from benchmarks.trunk_savings import SEED_LRS, TABLE_16, TWENTIETHS, UPPER_HALF, formula
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.run import StudyStart, run_study
from knee_tune.commands.workers import GroupOptions
from knee_tune.config.recipe import Recipe
from knee_tune.jobs import run_job, task_run
from knee_tune.plans.plan import DescribePlan, TaskFacts, TaskOrder, TrainPlan
from knee_tune.plans.planner import knee_schedule, on_trunk, train_plan
from knee_tune.records.study import Steps
from knee_tune.study.events import Watcher
from knee_tune.tasks.registry import task_entry
from knee_tune.training.loop import TrainingRun
from knee_tune.workers.group import Group

FRACTIONS = tuple(round(0.1 * i, 1) for i in range(10))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task with a preset, whose trunks are weighed."""

    name: str
    task: str
    preset: str
    data: Path | None = None
    """None: it is generated."""

    def runs(self, folder: Path) -> "Runs":
        """What is trained, in ``folder``."""
        spec = resolve_asked(task=self.task, preset=self.preset)
        order = TaskOrder(
            task=self.task,
            recipe=spec.recipe,
            seed=1,
            data_dir=self.data or folder,
            log_dir=folder,
        )
        done = run_job(DescribePlan(**dict(order)), Group(), Nobody())
        facts = TaskFacts.model_validate(done.result)
        return Runs(order=order, recipe=spec.typed_recipe, facts=facts)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs of one seed LR, with and without their trunk."""

    order: TaskOrder
    recipe: Recipe
    facts: TaskFacts

    def plan(self, name: str, *, explore_fraction: float, trunks: Path | None) -> TrainPlan:
        """A run in a folder of its own; ``trunks`` None: it shares nothing."""
        schedule = knee_schedule(
            self.recipe,
            self.facts,
            seed_lr=self.recipe.seed_lr,
            explore_fraction=explore_fraction,
        )
        plan = train_plan(
            self.order,
            self.recipe,
            self.facts,
            schedule=schedule,
            checkpoint_dir=self.order.log_dir / name,
        )
        if trunks is None:
            return plan
        return on_trunk(plan, self.recipe, self.facts, trunks=trunks, explore_fractions=FRACTIONS)

    def start(self, plan: TrainPlan) -> TrainingRun:
        """The run where it starts, before its first step."""
        task = task_entry(plan.task).build(plan.recipe, data_dir=plan.data_dir, seed=plan.seed)
        return task_run(task, plan, Group(), Nobody())


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What one pair of runs took, in seconds."""

    without: float
    with_trunk: float
    checkpoints: int
    load: float
    """Starting from the highest checkpoint, over starting from scratch."""
    size: int
    """Bytes of a checkpoint."""


def weigh(workload: Workload, number: int) -> Weights:
    """One run with its trunk and one without, who goes first in turn; CPU seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs, trunks = workload.runs(folder), folder / "trunks"
        seconds = {}
        for kept in (True, False) if number % 2 else (False, True):
            plan = runs.plan(
                f"kept-{kept}", explore_fraction=FRACTIONS[-1], trunks=trunks if kept else None
            )
            run = runs.start(plan)
            seconds[kept] = _timed(run.run)
        branch = runs.plan("branch", explore_fraction=FRACTIONS[-1], trunks=trunks)
        alone = runs.plan("alone", explore_fraction=FRACTIONS[-1], trunks=None)
        load = _timed(lambda: runs.start(branch)) - _timed(lambda: runs.start(alone))
        checkpoints = list(trunks.glob("*/step-*"))
        size = max(
            sum(file.stat().st_size for file in checkpoint.iterdir()) for checkpoint in checkpoints
        )
        return Weights(
            without=seconds[False],
            with_trunk=seconds[True],
            checkpoints=len(checkpoints),
            load=load,
            size=size,
        )


def _timed(work: Any) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


@dataclass(frozen=True, kw_only=True)
class Design:
    """A study that is driven for real."""

    name: str
    sampler: str
    fractions: tuple[float, ...]
    trials: int
    aim: float


DESIGNS = (
    Design(name="Table 16, grid", sampler="grid", fractions=TABLE_16, trials=36, aim=0.684),
    Design(
        name="fractions .5-.95, grid", sampler="grid", fractions=UPPER_HALF, trials=90, aim=0.38
    ),
    Design(
        name="fractions .05-.95, TPE", sampler="tpe", fractions=TWENTIETHS, trials=100, aim=0.45
    ),
)


def drive(design: Design, *, epochs: int) -> Steps:
    """The steps that the study recorded."""
    asked = resolve_asked(
        task="digits",
        name="bench",
        sampler=design.sampler,
        pruner="none",
        trials=design.trials,
        settings=(
            f"recipe.epochs={epochs}",
            f"recipe.seed_lr={SEED_LRS[4]}",
            f"space.seed_lr={{values: {list(SEED_LRS)}}}",
            f"space.explore_fraction={{values: {list(design.fractions)}}}",
        ),
    )

    @contextmanager
    def watch(_: StudyStart) -> Iterator[Watcher]:
        yield Nobody()

    with tempfile.TemporaryDirectory() as folder:
        return run_study(
            asked,
            study_places(Path(folder)),
            GroupOptions(),
            timeout=None,
            register=False,
            watch=watch,
        ).record.steps


def costs(workloads: Sequence[Workload], *, pairs: int) -> Table:
    """One line for each workload: medians over the pairs."""
    table = Table(title="What keeping and loading trunks costs (CPU seconds, medians)")
    for column in (
        "run",
        "without",
        "with",
        "checkpoints",
        "KiB",
        "keeping all",
        "a load",
        "Table 16",
    ):
        table.add_column(column, justify="left" if column == "run" else "right")
    for workload in workloads:
        weighed = [weigh(workload, number) for number in range(pairs)]
        without = median(pair.without for pair in weighed)
        keeping = median(pair.with_trunk / pair.without - 1 for pair in weighed)
        load = median(pair.load for pair in weighed)
        checkpoints = len(TABLE_16)
        spent = checkpoints * keeping * without / weighed[0].checkpoints + (checkpoints - 1) * load
        table.add_row(
            workload.name,
            f"{without:.2f}",
            f"{median(pair.with_trunk for pair in weighed):.2f}",
            str(weighed[0].checkpoints),
            f"{weighed[0].size / 1024:.0f}",
            f"{keeping:+.1%}",
            f"{load * 1000:.0f} ms",
            f"{spent / (checkpoints * formula(TABLE_16) * without):+.1%}",
        )
    return table


def savings(*, epochs: int) -> Table:
    """One line for each design."""
    table = Table(title=f"What trunks save: studies of digits, driven, {epochs} epochs each")
    for column in ("study", "independent", "trained", "share", "formula", "aim", "seconds"):
        table.add_column(column, justify="left" if column == "study" else "right")
    for design in DESIGNS:
        began = time.perf_counter()
        steps = drive(design, epochs=epochs)
        table.add_row(
            design.name,
            str(steps.independent),
            str(steps.trained),
            f"{steps.trained / steps.independent:.4f}",
            f"{formula(design.fractions):.4f}" if design.sampler == "grid" else "",
            f"{design.aim:g}",
            f"{time.perf_counter() - began:.0f}",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2, help="of the studies that are driven")
    parser.add_argument("--only", choices=["digits", "iwslt", "savings"], help="a part of it")
    parser.add_argument("--data", type=Path, help="where iwslt14-sample is prepared")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    workloads = [
        Workload(name="digits, 30 epochs", task="digits", preset="default"),
        Workload(name="iwslt, generated corpus, 6 epochs", task="iwslt", preset="demo"),
    ]
    if chosen.data:
        name = "iwslt, sample of the real corpus, 3 epochs"
        workloads.append(Workload(name=name, task="iwslt", preset="sample", data=chosen.data))
    workloads = [workload for workload in workloads if chosen.only in (None, workload.task)]
    if workloads:
        console.print(costs(workloads, pairs=chosen.pairs))
    if chosen.only in (None, "savings"):
        console.print(savings(epochs=chosen.epochs))


if __name__ == "__main__":
    main()
