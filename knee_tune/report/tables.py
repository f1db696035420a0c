"""The numbers of a study as CSV, for spreadsheets, pandas and MLflow's artifact view."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

from knee_tune.records.findings import Optimum, Ridge, Surface
from knee_tune.records.study import StudyRecord
from knee_tune.stats.comparison import Comparison

TRIAL_COLUMNS = (
    *("number", "seed_lr", "explore_fraction", "state", "value", "spread", "steps_trained"),
    *("steps_reused", "steps_pruned", "steps_budget", "seconds", "reason", "checkpoint", "run_url"),
)

FIELDS = {
    "steps_trained": "steps.trained",
    "steps_reused": "steps.reused",
    "steps_budget": "budget",
}
"""Of a trial, where its column has another name."""

WAYS = ("raw", "gp", "cubic")
"""How an optimum is found."""


def study_tables(
    record: StudyRecord, statistics: Ridge | Comparison | None
) -> Iterator[tuple[str, str]]:
    """Names of files and their text: trials, runs, surface, optima; runs of a comparison."""
    if record.spec.compare is not None:
        yield "compared.csv", compared_table(record)
        return
    yield "trials.csv", trials_table(record)
    yield "replicates.csv", replicates_table(record)
    if isinstance(statistics, Ridge):
        yield "surface.csv", surface_table(statistics.surface)
        yield "surface.json", statistics.surface.model_dump_json(indent=2)
        yield "optimal.csv", optimal_table(statistics)


def trials_table(record: StudyRecord) -> str:
    """A row per trial; ``value`` is the mean of the study's metric over its replicates."""
    columns = (*TRIAL_COLUMNS, *_decay_column(record))
    values = attrgetter(*(FIELDS.get(name, name) for name in columns))
    return _csv(columns, map(values, record.trials))


def replicates_table(record: StudyRecord) -> str:
    """A row per training run: the raw numbers that every statistic comes from."""
    columns = ("number", "seed_lr", "explore_fraction", *_decay_column(record))
    rows = (
        (*(getattr(trial, name) for name in columns), run.seed, run.state, run.value)
        for trial in record.trials
        for run in trial.replicates
    )
    return _csv((*columns, "seed", "state", "value"), rows)


def _decay_column(record: StudyRecord) -> tuple[str, ...]:
    return ("decay",) if record.spec.space.decays else ()


def compared_table(record: StudyRecord) -> str:
    """A row per run of a comparison, with all that was measured of it."""
    table = record.spec.compare
    names = sorted({name for run in record.compared for name in run.metrics})
    rows = (
        (
            *(run.row, table.rows[run.row].shown if table else "", run.seed, run.state),
            *(run.metrics.get(name) for name in names),
            *(run.steps.trained, run.steps.reused, run.seconds, run.reason, run.checkpoint),
        )
        for run in record.compared
    )
    after = ("steps_trained", "steps_reused", "seconds", "reason", "checkpoint")
    return _csv(("row", "label", "seed", "state", *names, *after), rows)


def surface_table(surface: Surface) -> str:
    """A row per point that has a mean."""
    rows = (
        (seed_lr, fraction, mean, error)
        for seed_lr, means, errors in zip(
            surface.seed_lrs, surface.means, surface.errors, strict=True
        )
        for fraction, mean, error in zip(surface.explore_fractions, means, errors, strict=True)
        if mean is not None
    )
    return _csv(("seed_lr", "explore_fraction", surface.metric, "standard_error"), rows)


def optimal_table(ridge: Ridge) -> str:
    """A row per seed LR: the best explore fraction found in every way, with its interval."""
    header = ["seed_lr", *(f"{way}{part}" for way in WAYS for part in ("", "_low", "_high"))]
    return _csv(header, ([each.seed_lr, *_numbers(each)] for each in ridge.optimal))


def _numbers(optimum: Optimum) -> Iterable[float | None]:
    for known in (optimum.raw, optimum.gp, optimum.cubic):
        yield from (None,) * 3 if known is None else (known.value, known.low, known.high)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
