"""What the trained rows of a table say: means over random seeds, differences, a trend."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from knee_tune.config.recipe import Direction, Spec
from knee_tune.config.study import ReferenceRow
from knee_tune.records.study import ComparedRun, Steps, StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.stats.estimates import mean_estimate, paired_estimate

# In which phase the rows of a table differ: how long each explores, where they are one series.


class Explored(Spec):
    """Rows of one schedule and one budget that differ in how long they stay at one LR."""

    lr: float
    epochs: tuple[int, ...] = Field(description="at that LR, of every row")


def explored_in(rows: Sequence[ReferenceRow]) -> Explored | None:
    """The highest LR at which the rows stay for different times; None if they are no series.

    In the paper's Table 1 that is 0.1, in Table 2 it is 0.01 (all rows have 100 epochs at 0.1), in
    Table 15 the seed LR.
    """
    if len({(row.schedule, row.epochs) for row in rows}) != 1:
        return None
    phases = [_phases(row) for row in rows]
    if rows[0].schedule == "knee" and len({row.seed_lr for row in rows}) != 1:
        return None
    for lr in sorted({lr for row in phases for lr in row}, reverse=True):
        epochs = tuple(row.get(lr, 0) for row in phases)
        if len(set(epochs)) > 1:
            return Explored(lr=lr, epochs=epochs) if len(set(epochs)) == len(rows) else None
    return None


def _phases(row: ReferenceRow) -> dict[float, int]:
    """Epochs at every LR that is held; empty where none is."""
    if row.seed_lr is None:
        return {}
    if row.schedule == "knee":
        return {row.seed_lr: row.explore_epochs or 0}
    if row.schedule != "step":
        return {}
    ends = (*row.boundaries, row.epochs)
    starts = (0, *row.boundaries)
    return {
        float(f"{row.seed_lr * 0.1**passed:.3g}"): end - start
        for passed, (start, end) in enumerate(zip(starts, ends, strict=True))
    }


# A metric against the epochs of exploring: does it rise or fall, and is that more than chance?

Course = Literal["rises", "falls"]

PER_EPOCHS = 10
"""Explore epochs, of the paper's, that a slope is told for."""

SHARPNESS = ("sharpness", "fisher")
"""Fall with more exploring, says the paper's hypothesis (section 3.1)."""


class Trend(Spec):
    """A metric against the explore epochs: the slope of a straight line, seed by seed."""

    metric: str
    expected: Course = Field(description="in the paper, or by its hypothesis")
    slope: Estimate = Field(description=f"mean over seeds, per {PER_EPOCHS} of the paper's epochs")
    paper: float | None = Field(description="the slope of the paper's own means")
    p: float | None = Field(description="two-sided, of no slope; None with one seed")
    seeds: int = Field(description="that have the metric in every row")

    @property
    def of_sharpness(self) -> bool:
        """Whether it says how wide the minima are."""
        return self.metric in SHARPNESS

    @property
    def told(self) -> Course | None:
        """What the interval says; None if it holds zero, or if there is none."""
        if self.slope.side == 0:
            return None
        return "rises" if self.slope.side > 0 else "falls"


def trend_of(
    metric: str,
    explored: Explored,
    *,
    values: Sequence[Mapping[int, float]],
    papers: Sequence[float | None],
    hoped: Course | None = None,
) -> Trend | None:
    """The trend of ``values``, by row and random seed, beside that of the ``papers`` means.

    Expected is the paper's own course; where it has none, that of its hypothesis, or else the one
    ``hoped`` for. None if nothing is expected, and if no random seed has a value in every row:
    slopes of fewer rows do not compare.
    """
    known = {
        epochs: value
        for epochs, value in zip(explored.epochs, papers, strict=True)
        if value is not None
    }
    paper = slope([*known], [*known.values()]) if len(known) > 1 else None
    if metric in SHARPNESS:
        hoped = "falls"
    expected: Course | None = ("rises" if paper > 0 else "falls") if paper else hoped
    seeds = sorted(set.intersection(*(set(row) for row in values)))
    if expected is None or not seeds:
        return None
    slopes = [slope(explored.epochs, [row[seed] for row in values]) for seed in seeds]
    return Trend(
        metric=metric,
        expected=expected,
        slope=mean_estimate(slopes),
        paper=paper,
        p=two_sided_p(slopes) if len(slopes) > 1 else None,
        seeds=len(seeds),
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line, per :data:`PER_EPOCHS` of ``x``."""
    return PER_EPOCHS * statistics.linear_regression(x, y).slope


def two_sided_p(values: Sequence[float]) -> float:
    """Probability of a mean at least this far from zero where there is none; two values at least.

    Below 0.05 exactly where the 95 % interval of the mean excludes zero.
    """
    from scipy import stats

    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))


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
    keep: str = Field(description="the weights that were tested: ``best``, ``last``, ``average-5``")
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
