"""What the trained rows of a table say: means over random seeds, differences, a trend."""

import math
import statistics
from collections.abc import Sequence

from pydantic import Field

from knee_tune.reporting.explored import Explored, explored_in
from knee_tune.reporting.intervals import mean_estimate, paired_estimate
from knee_tune.reporting.trends import Course, Trend, trend_of
from knee_tune.specs.base import Spec
from knee_tune.specs.compared import ComparedRun
from knee_tune.specs.estimate import Estimate
from knee_tune.specs.recipe import Direction
from knee_tune.specs.records import Steps, StudyRecord
from knee_tune.specs.study import ReferenceRow


class Measured(Spec):
    """One metric of one row over its random seeds; None and empty where none has it."""

    values: dict[int, float] = Field(description="by random seed")
    mean: Estimate | None = Field(description="with its 95 % t interval from two seeds on")
    std: float | None = Field(description="sample standard deviation; None with one seed")
    difference: Estimate | None = Field(
        description="to the reference row, seed by seed; all differences of a metric hold together "
        "(Bonferroni)"
    )
    paper: float | None
    paper_std: float | None


class RowOutcome(Spec):
    """A row of the table, trained."""

    label: str
    schedule: str
    seed_lr: float
    epochs: int = Field(description="the paper's")
    trained_epochs: float
    explore_epochs: int | None = Field(description="that the rows differ in, the paper's")
    metrics: dict[str, Measured]
    missing: dict[int, str] = Field(description="why a random seed has no numbers")


class Comparison(Spec):
    """A published table beside the same rows, trained."""

    table: str
    section: str
    runs: int | None = Field(description="of the paper, per row")
    note: str
    scale: float = Field(description="trained epochs by the paper's")
    seeds: tuple[int, ...]
    keep: str = Field(description="the weights that were tested: the recipe's ``best`` or ``last``")
    metric: str = Field(description="that differences and order are judged by")
    direction: Direction = Field(description="of ``metric``")
    metrics: tuple[str, ...] = Field(description="those of the paper first")
    reference: int = Field(description="the row that the others are compared with")
    explored: Explored | None = Field(description="None: the rows are no series")
    rows: tuple[RowOutcome, ...]
    trends: tuple[Trend, ...]
    steps: Steps
    seconds: float = Field(description="in which runs were trained; pauses do not count")

    @property
    def papers_metrics(self) -> tuple[str, ...]:
        """Those that the paper gives for at least one row."""
        return tuple(
            name
            for name in self.metrics
            if any(row.metrics[name].paper is not None for row in self.rows)
        )


def comparison_of(record: StudyRecord) -> Comparison:
    """The statistics of a study that trains a table; ValueError if it does not, or has no run."""
    table = record.spec.compare
    done = [run for run in record.compared if run.state == "complete"]
    if table is None or not done:
        raise ValueError(f"study {record.name}: no row of a table is trained")
    explored = explored_in(table.rows)
    reference = reference_of(table.rows, explored)
    metric = _judged_metric(record.metric, done)
    metrics = _metrics_of(table.rows, done, first=metric)
    rows = tuple(
        RowOutcome(
            label=row.shown,
            schedule=row.schedule,
            seed_lr=row.seed_lr or float(record.spec.recipe["seed_lr"]),
            epochs=row.epochs,
            trained_epochs=row.epochs * record.spec.scale,
            explore_epochs=explored.epochs[index] if explored else None,
            metrics={
                name: _measured(
                    row,
                    name,
                    values=_values(done, index, name),
                    reference=None if index == reference else _values(done, reference, name),
                    comparisons=len(table.rows) - 1,
                    percent=record.in_percent(name),
                )
                for name in metrics
            },
            missing={
                run.seed: run.reason or run.state
                for run in record.compared
                if run.row == index and run.state != "complete"
            },
        )
        for index, row in enumerate(table.rows)
    )
    return Comparison(
        table=table.table,
        section=table.section,
        runs=table.runs,
        note=table.note,
        scale=record.spec.scale,
        seeds=tuple(sorted({run.seed for run in record.compared})),
        keep=str(record.spec.recipe.get("keep", "last")),
        metric=metric,
        direction=record.direction,
        metrics=metrics,
        reference=reference,
        explored=explored,
        rows=rows,
        trends=_trends(rows, explored, judged=metric, direction=record.direction),
        steps=record.steps,
        seconds=record.seconds,
    )


def reference_of(rows: Sequence[ReferenceRow], explored: Explored | None) -> int:
    """The row that explores least; without a series the step schedule, else Knee, else the first.

    Where the paper has a hand-tuned step schedule it is the baseline; in its appendix Knee stands
    against other schedules.
    """
    if explored is not None:
        return explored.epochs.index(min(explored.epochs))
    schedules = [row.schedule for row in rows]
    return next((schedules.index(name) for name in ("step", "knee") if name in schedules), 0)


def _trends(
    rows: Sequence[RowOutcome], explored: Explored | None, *, judged: str, direction: Direction
) -> tuple[Trend, ...]:
    """Of every metric that one expects something of; none where the rows are no series.

    Told first: the metric that rows are judged by, then how sharp their minima are.
    """
    if explored is None:
        return ()
    better: Course = "rises" if direction == "maximize" else "falls"
    found = [
        trend_of(
            name,
            explored,
            values=[row.metrics[name].values for row in rows],
            papers=[row.metrics[name].paper for row in rows],
            hoped=better if name == judged else None,
        )
        for name in rows[0].metrics
    ]
    told = [trend for trend in found if trend is not None]
    return tuple(sorted(told, key=lambda each: (each.metric != judged, not each.of_sharpness)))


def _measured(
    row: ReferenceRow,
    metric: str,
    *,
    values: dict[int, float],
    reference: dict[int, float] | None,
    comparisons: int,
    percent: bool,
) -> Measured:
    paired = sorted(values.keys() & reference.keys()) if reference is not None else []
    difference = None
    if reference is not None and paired:
        ours, theirs = [values[seed] for seed in paired], [reference[seed] for seed in paired]
        difference = paired_estimate(ours, theirs, comparisons=comparisons)
    return Measured(
        values=values,
        mean=mean_estimate(list(values.values())).bounded(percent=percent) if values else None,
        std=statistics.stdev(values.values()) if len(values) > 1 else None,
        difference=difference,
        paper=row.metrics.get(metric),
        paper_std=row.std.get(metric),
    )


def _values(runs: Sequence[ComparedRun], row: int, metric: str) -> dict[int, float]:
    found = ((run.seed, run.metrics.get(metric)) for run in runs if run.row == row)
    return {
        seed: value
        for seed, value in sorted(found, key=lambda pair: pair[0])
        if value is not None and math.isfinite(value)
    }


def _judged_metric(metric: str, runs: Sequence[ComparedRun]) -> str:
    """The study's metric on the test split, which nothing was selected on, if it was measured."""
    tested = f"test_{metric.partition('_')[2]}"
    return tested if any(tested in run.metrics for run in runs) else metric


def _metrics_of(
    rows: Sequence[ReferenceRow], runs: Sequence[ComparedRun], *, first: str
) -> tuple[str, ...]:
    papers = dict.fromkeys(name for row in rows for name in row.metrics)
    ours = sorted({name for run in runs for name in run.metrics})
    later = sorted(ours, key=lambda name: (name.startswith("valid_"), name))
    return tuple(dict.fromkeys([*papers, first, *later]))
