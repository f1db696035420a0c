"""What a comparison has found, in sentences and in the few numbers to be read from a distance."""

from collections.abc import Iterator, Sequence

from knee_tune.reporting.chance import judged
from knee_tune.reporting.compared import Comparison, RowOutcome
from knee_tune.reporting.document import Tile
from knee_tune.reporting.shown import in_words, number, p_value, rounded, rounded_parts, sentence
from knee_tune.reporting.trends import PER_EPOCHS, Trend
from knee_tune.specs.confirmation import CLAIMING_SEEDS
from knee_tune.specs.estimate import Estimate
from knee_tune.specs.shown import learning_rate, percent

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
