"""The report of a study that trains the rows of a published table."""

from collections.abc import Iterator, Sequence

from pydantic import Field

from knee_tune.records.findings import CLAIMING_SEEDS
from knee_tune.records.shown import (
    NOTHING,
    duration,
    in_words,
    learning_rate,
    number,
    p_value,
    percent,
    rounded,
    rounded_parts,
    sentence,
)
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.report.comparison_figures import comparison_figures, scattered
from knee_tune.report.document import (
    Report,
    ReportContext,
    Section,
    Table,
    Tile,
    again_section,
    written_at,
)
from knee_tune.report.run_figures import steps_figure
from knee_tune.stats.comparison import PER_EPOCHS, Comparison, RowOutcome, Trend, comparison_of
from knee_tune.stats.estimates import judged

# What a comparison has found, in sentences and in the few numbers to be read from a distance.

IN_POINTS = ("accuracy", "top5", "bleu")

"""Metrics in percent: a difference of 0.1 is a tenth of a point."""


def comparison_note(
    name: str, description: str, comparison: Comparison, *, links: Sequence[str] = ()
) -> str:
    """Markdown, as Optuna Dashboard and MLflow show it above everything else."""
    paragraphs = [
        f"# {name}",
        description,
        *answer_words(comparison),
        _beside(comparison),
        *comparison.steps.words,
        *links,
    ]
    return "\n\n".join(filter(None, paragraphs))


def answer_words(comparison: Comparison) -> tuple[str, ...]:
    """The finding first, then under which conditions it was made."""
    found = (
        [trend_words(trend, comparison) for trend in comparison.trends]
        if comparison.explored is not None
        else list(_order_words(comparison))
    )
    return (*found, _conditions(comparison))


def trend_words(trend: Trend, comparison: Comparison) -> str:
    """One trend, so that nobody has to know what a slope is."""
    assert comparison.explored is not None
    metric = sentence(in_words(trend.metric))
    at = f"{PER_EPOCHS} explore epochs at LR {learning_rate(comparison.explored.lr)}"
    slope, seeds = trend.slope, _seeds(trend.seeds)
    paper = ""
    if trend.paper is not None:
        rises = "rises" if trend.paper > 0 else "falls"
        paper = f"; in the paper it {rises} by {_short(abs(trend.paper))}"
    if trend.p is None:
        return (
            f"{metric} changes by {number(slope.value, sign=True)} per {at}: one random seed, so "
            f"nothing says how much of it is chance{paper}."
        )
    chance = f"{p_value(trend.p)}, {seeds}"
    if trend.told is None:
        return (
            f"{metric}: no trend can be told from {seeds}. The slope is "
            f"{rounded(slope, sign=True)}{_unit(trend.metric)} per {at}, an interval with zero in "
            f"it ({p_value(trend.p)}){paper}."
        )
    amount = f"by {rounded(_size(slope))}{_unit(trend.metric)} per {at} ({chance})"
    against = "" if trend.told == trend.expected else ", the other way than expected"
    return f"{metric} {trend.told} {amount}{against}{paper}."


def comparison_tiles(comparison: Comparison) -> tuple[Tile, ...]:
    """Slopes of a series; else the best row and how far it is from the one to compare with."""
    tiles = [
        Tile(
            label=f"{in_words(trend.metric)} per {PER_EPOCHS} explore epochs",
            value=_short(trend.slope.value, sign=True),
            note=_trend_note(trend),
        )
        for trend in comparison.trends
        if trend.metric == comparison.metric or trend.of_sharpness
    ]
    best = best_row(comparison)
    if not tiles and best is not None:
        measured = best.metrics[comparison.metric]
        assert measured.mean is not None
        tiles.append(
            Tile(
                label=f"best {in_words(comparison.metric)}",
                value=number(measured.mean.value),
                note=best.label,
            )
        )
        if measured.difference is not None:
            reference = comparison.rows[comparison.reference].label
            tiles.append(
                Tile(
                    label=f"against {reference}",
                    value=_short(measured.difference.value, sign=True),
                    note=_interval(measured.difference),
                )
            )
    tiles.append(
        Tile(
            label="of the paper's epochs",
            value=percent(comparison.scale),
            note=budgets(comparison),
        )
    )
    tiles.append(
        Tile(
            label="random seeds per row",
            value=str(len(comparison.seeds)),
            note=f"{comparison.runs} in the paper" if comparison.runs else "",
        )
    )
    return tuple(tiles)


def best_row(comparison: Comparison) -> RowOutcome | None:
    """The row with the best mean; None if none has one."""
    known = [
        (measured.mean.value, row)
        for row in comparison.rows
        if (measured := row.metrics[comparison.metric]).mean is not None
    ]
    choose = max if comparison.direction == "maximize" else min
    return choose(known, key=lambda pair: pair[0])[1] if known else None


def budgets(comparison: Comparison) -> str:
    """``10 of 200 epochs``; with several budgets each of them."""
    pairs = sorted({(row.trained_epochs, row.epochs) for row in comparison.rows}, reverse=True)
    return ", ".join(f"{trained:.4g} of {papers} epochs" for trained, papers in pairs)


def _order_words(comparison: Comparison) -> Iterator[str]:
    """Which row is best, here and in the paper; then each against the reference."""
    metric, best = in_words(comparison.metric), best_row(comparison)
    if best is None:
        return
    highest = "Highest" if comparison.direction == "maximize" else "Lowest"
    told = [
        (value, row.label)
        for row in comparison.rows
        if (value := row.metrics[comparison.metric].paper) is not None
    ]
    choose = max if comparison.direction == "maximize" else min
    paper = ""
    if told:
        value, label = choose(told)
        paper = f"; in the paper it is {label}, {value:g}"
    mean = rounded(best.metrics[comparison.metric].mean)
    yield f"{highest} {metric}: {best.label}, {mean}{paper}."
    reference = comparison.rows[comparison.reference]
    for row in comparison.rows:
        if row is not reference and row.metrics[comparison.metric].mean is not None:
            difference = row.metrics[comparison.metric].difference
            said = (
                "not measured with the same random seeds"
                if difference is None
                else f"{rounded(difference, sign=True)}, {judged(difference, comparison.direction)}"
            )
            yield f"{row.label} against {reference.label}: {said}."


def _conditions(comparison: Comparison) -> str:
    scale = (
        "at the paper's epochs"
        if comparison.scale == 1
        else f"at {percent(comparison.scale)} of the paper's epochs "
        f"({budgets(comparison)}; boundaries are scaled with them)"
    )
    seeds = _seeds(len(comparison.seeds))
    missing = sum(len(row.missing) for row in comparison.rows)
    gap = f" Runs that did not finish are left out: {missing}." if missing else ""
    few = (
        f" Fewer than {CLAIMING_SEEDS} random seeds are good for a look, not for a claim."
        if len(comparison.seeds) < CLAIMING_SEEDS
        else ""
    )
    return f"Every row was trained with {seeds}, {scale}.{few}{gap}"


def _beside(comparison: Comparison) -> str:
    """The table as Markdown, paper and ours."""
    names = comparison.papers_metrics or comparison.metrics[:1]
    columns = "".join(f" paper: {in_words(name)} | ours |" for name in names)
    lines = [f"| row |{columns}", "|---|" + "---|---|" * len(names)]
    for row in comparison.rows:
        cells = "".join(
            f" {number(row.metrics[name].paper)} | {rounded(row.metrics[name].mean)} |"
            for name in names
        )
        lines.append(f"| {row.label} |{cells}")
    return "\n".join(lines)


def _trend_note(trend: Trend) -> str:
    paper = "" if trend.paper is None else f"the paper {_short(trend.paper, sign=True)}"
    return "; ".join(filter(None, (_interval(trend.slope), paper)))


def _interval(value: Estimate) -> str:
    _, *ends = rounded_parts(value, sign=True)
    if not ends:
        return "one random seed: no interval"
    return f"{value.level * 100:.3g}% interval {' to '.join(ends)}"


def _size(slope: Estimate) -> Estimate:
    """Of a fall, the amount: both ends turned round."""
    if slope.value >= 0 or slope.low is None or slope.high is None:
        return slope
    return slope.model_copy(update={"value": -slope.value, "low": -slope.high, "high": -slope.low})


def _unit(metric: str) -> str:
    return " points" if metric.rpartition("_")[2] in IN_POINTS else ""


def _short(value: float, *, sign: bool = False) -> str:
    """Two significant digits."""
    return f"{float(f'{value:.2g}'):{'+' if sign else ''}g}"


def _seeds(count: int) -> str:
    return "one random seed" if count == 1 else f"{count} random seeds"


# Sections of the report of a comparison.


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


class ComparisonReport(Report):
    """Ours beside the paper's."""

    comparison: Comparison = Field(description="all numbers")


def build_comparison_report(record: StudyRecord, *, context: ReportContext) -> ComparisonReport:
    """Everything about a comparison with at least one complete run; ValueError without one."""
    comparison = comparison_of(record)
    steps = steps_figure(comparison.steps)
    return ComparisonReport(
        study=record.name,
        task=record.task,
        preset=record.spec.preset,
        description=record.spec.description,
        written=written_at(context),
        metric=comparison.metric,
        direction=comparison.direction,
        environment=context.environment,
        replay=context.replay,
        left_out=_left_out(comparison),
        tiles=comparison_tiles(comparison),
        sections=_sections(record, comparison, context),
        figures=comparison_figures(comparison) | ({"steps": steps} if steps else {}),
        comparison=comparison,
    )


def _sections(
    record: StudyRecord, comparison: Comparison, context: ReportContext
) -> tuple[Section, ...]:
    sections = [
        comparison_answer(comparison),
        beside_section(comparison),
        trend_section(comparison),
        seeds_section(comparison),
        others_section(comparison),
        cost_section(comparison),
        runs_section(record, comparison),
        again_section(context, unit="run"),
    ]
    return tuple(section for section in sections if section is not None)


def _left_out(comparison: Comparison) -> tuple[str, ...]:
    """A line for each part of a report that there is nothing to show of."""
    reasons = {
        "Intervals and the scatter of random seeds: one seed only; --replicates 5 gives them.": (
            not scattered(comparison)
        ),
        "Trend: the rows are different schedules, not one that explores for longer and longer.": (
            comparison.explored is None
        ),
        "Trend: no random seed has finished every row.": (
            comparison.explored is not None and not comparison.trends
        ),
        "Sharpness: not measured; a study file asks for it under analyses.": (
            not {"sharpness", "fisher"} & set(comparison.metrics)
        ),
        "Learning curves: in MLflow, with every run.": True,
    }
    return tuple(reason for reason, holds in reasons.items() if holds)
