"""Made-up comparisons: a table, and the runs of its rows."""

from collections.abc import Callable
from typing import Any

from knee_tune.config.recipe import ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.study import ReferenceRow, ReferenceTable, StudySpec
from knee_tune.records.study import ComparedRun, StudyRecord
from knee_tune.records.values import StepCount

EXPLORED = (0, 50, 100)
"""Epochs at LR 0.1 of :func:`series`."""


def stepped(explore: int, **metrics: float) -> ReferenceRow:
    """A row of Table 1: ``explore`` of 200 epochs at 0.1, then half at 0.01, half at 0.001."""
    rest = (200 - explore) // 2
    return ReferenceRow(
        schedule="step",
        label=f"LR 0.1 for {explore} epochs",
        epochs=200,
        seed_lr=0.1 if explore else 0.01,
        boundaries=(explore, explore + rest) if explore else (rest,),
        metrics=metrics,
    )


def series() -> ReferenceTable:
    """Accuracy rises by 0.1 per 10 explore epochs, sharpness falls by 0.5."""
    return ReferenceTable(
        table="Table 1",
        section="3",
        runs=4,
        rows=tuple(
            stepped(epochs, test_accuracy=94 + epochs / 100, sharpness=10 - epochs / 20)
            for epochs in EXPLORED
        ),
    )


def schedules() -> ReferenceTable:
    """Rows that are no series: the baseline, and Knee at two budgets."""
    rows = (
        ReferenceRow(
            schedule="step",
            label="Baseline",
            epochs=200,
            seed_lr=0.1,
            boundaries=(100, 150),
            metrics={"test_accuracy": 95.1},
            std={"test_accuracy": 0.14},
        ),
        ReferenceRow(
            schedule="knee",
            label="Knee",
            epochs=200,
            seed_lr=0.1,
            explore_epochs=100,
            metrics={"test_accuracy": 95.26},
        ),
        ReferenceRow(
            schedule="knee",
            label="Knee (short budget)",
            epochs=150,
            seed_lr=0.1,
            explore_epochs=100,
            metrics={"test_accuracy": 95.14},
        ),
    )
    return ReferenceTable(table="Table 9", section="5.3.2", runs=7, rows=rows)


def compared(
    table: ReferenceTable,
    metrics: Callable[[int, int], dict[str, float] | None],
    *,
    seeds: int = 3,
    **spec: Any,
) -> StudyRecord:
    """A record whose runs have what ``metrics(row, seed)`` says; None diverged."""
    point = SearchSpace(
        seed_lr=SeedLRSpace(values=(0.1,)),
        explore_fraction=ExploreFractionSpace(values=(0.5,)),
    )
    settings: dict[str, Any] = {
        "name": "compared",
        "task": "toy",
        "preset": "full",
        "recipe": {"seed_lr": 0.1, "epochs": 200},
        "space": point,
        "compare": table,
        "replicates": seeds,
    }
    runs = list[ComparedRun]()
    for row in range(len(table.rows)):
        for seed in range(1, seeds + 1):
            found = metrics(row, seed)
            run = ComparedRun(
                row=row,
                seed=seed,
                state="pruned" if found is None else "complete",
                reason="diverged at step 30: the loss is nan" if found is None else "",
                metrics=found or {},
                steps=StepCount(trained=150, reused=50, reached=200),
                budget=200,
                started=10.0 * len(runs),
                seconds=5.0,
            )
            runs.append(run)
    return StudyRecord(
        name="compared",
        task="toy",
        metric="valid_accuracy",
        direction="maximize",
        spec=StudySpec.model_validate(settings | spec),
        compared=tuple(runs),
    )
