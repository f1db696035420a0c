"""Sections of the report of a comparison."""

from knee_tune.reporting.compared import Comparison, RowOutcome
from knee_tune.reporting.compared_figures import scattered
from knee_tune.reporting.compared_words import answer_words
from knee_tune.reporting.document import Section, Table
from knee_tune.reporting.shown import (
    NOTHING,
    duration,
    in_words,
    number,
    p_value,
    rounded,
    sentence,
)
from knee_tune.reporting.trends import PER_EPOCHS
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.shown import learning_rate


def comparison_answer(comparison: Comparison) -> Section:
    """What was found, first."""
    return Section(key="answer", title="The answer", words=answer_words(comparison))


def beside_section(comparison: Comparison) -> Section:
    """Every metric of the paper's table, theirs beside ours."""
    words = [
        f"{comparison.table} (section {comparison.section}), every row of it trained. "
        f"The paper's values are means{_runs(comparison)} ± standard deviations, where it gives "
        "them; ours are means with their 95% t intervals over the random seeds. "
        f"{_tested(comparison)}",
    ]
    if comparison.scale != 1:
        words.append(
            "At another budget compare the order of the rows and the direction, not the numbers: "
            "so both stand on scales of their own in the figure."
        )
    if comparison.note:
        words.append(comparison.note)
    names = comparison.papers_metrics or (comparison.metric,)
    return Section(
        key="beside",
        title="Beside the paper",
        words=tuple(words),
        figures=("beside",),
        wide=True,
        tables=tuple(_beside_table(comparison, name) for name in names),
    )


def trend_section(comparison: Comparison) -> Section | None:
    """The slopes; None where the rows are no series or nothing was measured in all of them."""
    if comparison.explored is None or not comparison.trends:
        return None
    lr = learning_rate(comparison.explored.lr)
    scaled = (
        ""
        if comparison.scale == 1
        else f" ({PER_EPOCHS * comparison.scale:.3g} of the epochs that were trained)"
    )
    rows = tuple(
        (
            in_words(trend.metric),
            rounded(trend.slope, sign=True),
            NOTHING if trend.paper is None else f"{trend.paper:+.2g}",
            trend.expected,
            NOTHING if trend.p is None else p_value(trend.p),
            str(trend.seeds),
        )
        for trend in comparison.trends
    )
    return Section(
        key="trend",
        title="More exploring, and what it changes",
        words=(
            f"For every random seed a straight line was laid through the rows: the metric against "
            f"the epochs at LR {lr}. Its slope is told per {PER_EPOCHS} of the paper's epochs"
            f"{scaled}; the interval and p are of the mean slope over the seeds (Student's t, "
            "every metric by itself). p is two-sided: how probable a slope at least this far from "
            "zero would be if there were none. A trend is told where the interval excludes zero, "
            "that is p < 0.05. The paper's slope is of the rows that it has a value for.",
            "A line is a summary: where the first epochs change most it says too little of them.",
        ),
        tables=(
            Table(
                caption=f"Slope per {PER_EPOCHS} of the paper's epochs at LR {lr}",
                columns=("metric", "slope", "the paper's", "expected", "p", "random seeds"),
                rows=rows,
            ),
        ),
    )


def seeds_section(comparison: Comparison) -> Section | None:
    """How random seeds scatter; None with one of them."""
    names = scattered(comparison)
    if not names:
        return None
    table_rows = tuple(
        (row.label, *(_spread(row, name) for name in names)) for row in comparison.rows
    )
    return Section(
        key="seeds",
        title="Over the random seeds",
        words=(
            "By the paper's hypothesis longer exploring moves the distribution over random seeds "
            "to wider minima and higher test accuracy, and tightens it (its Figures 2 and 3)."
            if comparison.explored
            else "Every point is one run: another random seed falls somewhere among them.",
        ),
        figures=tuple(f"seeds_{name}" for name in names),
        tables=(
            Table(
                caption="Standard deviation over the random seeds, and lowest to highest",
                columns=("row", *(in_words(name) for name in names)),
                rows=table_rows,
            ),
        ),
    )


def others_section(comparison: Comparison) -> Section | None:
    """What was measured and is not in the paper's table; None if nothing."""
    names = [
        name
        for name in comparison.metrics
        if name not in (comparison.papers_metrics or (comparison.metric,))
        and any(row.metrics[name].values for row in comparison.rows)
    ]
    if not names:
        return None
    return Section(
        key="others",
        title="What else was measured",
        tables=(
            Table(
                caption="Means over random seeds with 95% intervals, each of the split it names",
                columns=("row", *(in_words(name) for name in names)),
                rows=tuple(
                    (row.label, *(rounded(row.metrics[name].mean) for name in names))
                    for row in comparison.rows
                ),
            ),
        ),
    )


def cost_section(comparison: Comparison) -> Section:
    """Steps and time."""
    words = [f"time in which runs were trained: {duration(comparison.seconds)}"]
    words += [line.replace("trials", "runs") for line in comparison.steps.words]
    return Section(
        key="steps",
        title="What it cost",
        words=tuple(f"{sentence(line)}." for line in words),
        figures=("steps",),
    )


def runs_section(record: StudyRecord, comparison: Comparison) -> Section:
    """Every run there is."""
    names = [name for name in comparison.metrics if _measured_in(comparison, name)]
    rows = tuple(
        (
            comparison.rows[run.row].label,
            str(run.seed),
            *(number(run.metrics.get(name)) for name in names),
            f"{run.steps.trained:,}",
            f"{run.steps.reused:,}",
            run.state if run.state == "complete" else run.reason or run.state,
        )
        for run in sorted(record.compared, key=lambda each: (each.row, each.seed))
    )
    return Section(
        key="runs",
        title="All runs",
        tables=(
            Table(
                caption="Runs by row and random seed, metrics of the splits they name",
                columns=(
                    *("row", "random seed", *map(in_words, names)),
                    *("steps trained", "steps reused", "state"),
                ),
                rows=rows,
                folded=True,
            ),
        ),
    )


def _tested(comparison: Comparison) -> str:
    chosen = (
        "nothing was selected"
        if comparison.keep == "last"
        else "the weights that were best on the validation split were kept"
    )
    return (
        f"Training ran to the end of the budget and {chosen}; the test split is looked at once per "
        "run."
    )


def _beside_table(comparison: Comparison, metric: str) -> Table:
    reference = comparison.rows[comparison.reference]
    return Table(
        caption=f"{sentence(in_words(metric))}; differences to {reference.label}, seed by seed, "
        "hold together (Bonferroni)",
        columns=("row", "epochs", "the paper", "ours", "random seeds", "difference"),
        rows=tuple(
            (
                row.label,
                _epochs(row),
                _papers(row, metric),
                rounded(row.metrics[metric].mean),
                str(len(row.metrics[metric].values)),
                NOTHING
                if row is reference or not row.metrics[metric].values
                else rounded(row.metrics[metric].difference, sign=True),
            )
            for row in comparison.rows
        ),
    )


def _epochs(row: RowOutcome) -> str:
    trained = f"{row.trained_epochs:.4g}"
    return trained if row.trained_epochs == row.epochs else f"{trained} of {row.epochs}"


def _papers(row: RowOutcome, metric: str) -> str:
    measured = row.metrics[metric]
    if measured.paper is None:
        return NOTHING
    return f"{measured.paper:g}" + (f" ± {measured.paper_std:g}" if measured.paper_std else "")


def _spread(row: RowOutcome, metric: str) -> str:
    values = list(row.metrics[metric].values.values())
    if len(values) < 2:
        return NOTHING
    return f"{row.metrics[metric].std:.2g} ({number(min(values))} to {number(max(values))})"


def _measured_in(comparison: Comparison, metric: str) -> bool:
    return any(row.metrics[metric].values for row in comparison.rows)


def _runs(comparison: Comparison) -> str:
    return f" over {comparison.runs} runs" if comparison.runs else ""
