"""The answer of a study: in a few numbers, in sentences, and as the note of other pages."""

from collections.abc import Iterator, Sequence

from knee_tune.config.recipe import DEFAULT_DECAY, DEFAULT_EXPLORE_FRACTION
from knee_tune.config.study import edges
from knee_tune.records.findings import (
    CLAIMING_SEEDS,
    Candidate,
    Confirmation,
    Optimum,
    Recommendation,
    Ridge,
)
from knee_tune.records.shown import (
    estimate,
    fraction_estimate,
    in_words,
    learning_rate,
    number,
    p_value,
    percent,
    rounded,
    rounded_parts,
    sentence,
    setting,
)
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.report.document import Tile
from knee_tune.report.run_figures import knee_of
from knee_tune.report.wording import (
    counted_seeds,
    difference_words,
    interval_words,
    judged,
    judged_shortly,
    ridge_words,
    short,
    unit_of,
)
from knee_tune.schedules import Knee, Phased
from knee_tune.schedules.settings import PROJECTS, Format, Setting
from knee_tune.schedules.settings import setting as project_setting
from knee_tune.stats.comparison import PER_EPOCHS, Comparison, RowOutcome, Trend
from knee_tune.tasks.outside import is_reference

LEFT_OUT = "the search's own random seeds, each left out in turn of the choice"

BEST_OF_MANY = "the best trial of the search, so rather too good than too bad"

IMPORTANCE = (
    "*Hyperparameter importance* on this page is PED-ANOVA's: what sets the best tenth of the "
    "trials apart. The report has it beside fANOVA's, which measures something else: shares of the "
    "metric's variance over the whole search space."
)
"""Optuna Dashboard knows one evaluator, and gives no place to name it but the note."""


def study_note(
    record: StudyRecord, statistics: Ridge | Comparison | None, *, links: Sequence[str] = ()
) -> str:
    """Markdown, as Optuna Dashboard and MLflow show it above everything else.

    What was found, how sure that is, and what it cost; ``links`` are further paragraphs: where to
    find more.
    """
    if isinstance(statistics, Comparison):
        found = [*comparison_words(statistics), _beside_papers(statistics)]
    else:
        found = list(_search_note(record, statistics))
    paragraphs = [f"# {record.name}", record.spec.description, *found, *record.steps.words]
    if isinstance(statistics, Ridge):
        paragraphs.append(IMPORTANCE)
    return "\n\n".join(filter(None, (*paragraphs, *links)))


# Of a search: the setting to use.


def answer_of(record: StudyRecord, ridge: Ridge | None) -> Recommendation | None:
    """The study's winner, and what to expect of it; None if no trial is complete.

    Where fresh seeds were tried at that point its numbers are theirs, confirmed or not; elsewhere
    they are those of the search.
    """
    winner, confirmation = record.winner, record.confirmation
    if winner is None:
        return None
    if confirmation is not None:
        tried = (each for each in confirmation.candidates if each.point == winner.point)
        fresh = next(tried, None)
        if fresh is not None and fresh.mean is not None:
            return _answer_of_fresh_seeds(fresh, fresh.mean, confirmation)
    found = ridge.recommended if ridge else None
    assert winner.value is not None, "a complete trial has a value"
    return Recommendation(
        **winner.coordinates,
        metric=record.metric,
        expected=found.expected if found else Estimate(value=winner.value),
        default=found.default if found else None,
        difference=found.difference if found else None,
        confirmed=winner.confirmed,
        evidence=LEFT_OUT if found and record.spec.replicates > 1 else BEST_OF_MANY,
    )


def _answer_of_fresh_seeds(
    fresh: Candidate, mean: Estimate, confirmation: Confirmation
) -> Recommendation:
    default = next((each.mean for each in confirmation.candidates if each.default), None)
    return Recommendation(
        **fresh.coordinates,
        metric=confirmation.metric,
        expected=mean,
        default=default,
        difference=fresh.difference,
        confirmed=confirmation.says(fresh.point),
        evidence=f"{len(confirmation.seeds)} fresh random seeds, not used in the search",
    )


def winner_knee(record: StudyRecord) -> Knee | Phased | None:
    """The schedule of the study's winner.

    None if no trial is complete, or if its steps are not known (of some earlier version's trials).
    """
    winner, best = record.winner, record.best
    if winner is None or best is None or not best.budget:
        return None
    return knee_of(record, winner.trial or best.model_copy(update=winner.coordinates))


def winner_setting(record: StudyRecord, knee: Knee | Phased, form: Format) -> Setting:
    """The winner's schedule as the project ``form`` writes it; ValueError if it cannot be said."""
    found = project_setting(knee, form)
    optimizer = record.spec.recipe.get("optimizer", {}).get("name")
    if is_reference(record.task):
        optimizer = None  # its class may build another one than the recipe names
    trained = f"Found with {optimizer}; an LR is good for its own optimizer." if optimizer else ""
    return found._replace(note=f"{found.note} {trained}".strip())


def winner_settings(record: StudyRecord) -> dict[Format, Setting]:
    """The winner's schedule in every format; where one cannot say it, the note tells why."""
    settings: dict[Format, Setting] = {}
    if (knee := winner_knee(record)) is None:
        return settings
    for form, project in PROJECTS.items():
        try:
            settings[form] = winner_setting(record, knee, form)
        except ValueError as error:
            settings[form] = Setting(project.title, "", f"{project.title}: {error}.")
    return settings


def search_tiles(answer: Recommendation, record: StudyRecord) -> tuple[Tile, ...]:
    """The numbers that people look for first."""
    unit = "steps" if "steps" in record.spec.recipe else "epochs"
    budget = int(record.spec.recipe[unit])
    better = "lower is better" if record.direction == "minimize" else "higher is better"
    tiles = [
        Tile(label="seed LR", value=learning_rate(answer.seed_lr)),
        Tile(
            label="explore fraction",
            value=percent(answer.explore_fraction),
            note=f"{budget * answer.explore_fraction:.6g} of {budget} {unit}, then the LR falls",
        ),
        *([Tile(label="decay", value=answer.decay)] if answer.decay else []),
        Tile(
            label=f"expected {in_words(answer.metric)}",
            value=number(answer.expected.value),
            note=f"{interval_words(answer.expected)}; {better}",
        ),
    ]
    if (difference := answer.difference) is not None:
        tiles.append(
            Tile(
                label="against the default",
                value=rounded_parts(difference, sign=True)[0],
                unit=unit_of(answer.metric, of=answer.expected),
                note=f"{judged_shortly(difference, record.direction)}; "
                f"{interval_words(difference, sign=True)}",
            )
        )
    tiles.append(Tile(label="confirmed by fresh seeds", value=answer.confirmed))
    return tuple(tiles)


def search_words(
    answer: Recommendation, record: StudyRecord, ridge: Ridge | None
) -> tuple[str, ...]:
    """What to use, first; then what holds for other seed LRs."""
    said = [*_use(answer, record), *_caveats(answer, record)]
    if ridge is not None and len(ridge.optimal) > 1:
        said.append(ridge_words(ridge))
    return tuple(said)


def _use(answer: Recommendation, record: StudyRecord) -> Iterator[str]:
    """The setting, what to expect of it, and what the default has."""
    decay = DEFAULT_DECAY if record.spec.space.decays else None
    default = setting(float(record.spec.recipe["seed_lr"]), DEFAULT_EXPLORE_FRACTION, decay)
    yield f"Use {answer.setting}."
    yield (
        f"Expect a mean {in_words(answer.metric)} of {estimate(answer.expected)} over random seeds "
        f"({answer.evidence})."
    )
    if answer.difference is not None and answer.default is not None:
        yield (
            f"The default ({default}) has {estimate(answer.default)}; the difference is "
            f"{difference_words(answer.difference, answer.metric, of=answer.expected)}, "
            f"{judged(answer.difference, record.direction)}."
        )
    elif answer.default is None:
        yield (
            f"The default ({default}) was not trained with the same random seeds, so "
            "nothing compares."
        )


def _caveats(answer: Recommendation, record: StudyRecord) -> Iterator[str]:
    """How sure it is, and where a better setting may lie."""
    trial = record.winner.trial if record.winner else None
    if trial is not None and trial.budget:
        knee = knee_of(record, trial)
        if knee.knee_step == knee.total_steps:
            yield (
                f"Its warmup ({knee.warmup_steps} of {knee.total_steps} steps) and its explore "
                "phase take all of the budget, so any longer explore fraction is the same schedule."
            )
    if record.confirmation is not None:
        yield from _fresh_words(record.confirmation)
    else:
        yield "No fresh random seeds have confirmed it (knee-tune run --confirm 3:5 does)."
    for edge in edges(
        record.spec, seed_lr=answer.seed_lr, explore_fraction=answer.explore_fraction
    ):
        yield (
            f"It lies on the edge of the search space ({edge.what}), so a better one may lie "
            f"beyond: the run command with --set '{edge.setting}' and more trials looks there."
        )


def _fresh_words(confirmation: Confirmation) -> Iterator[str]:
    if confirmation.race is not None:
        yield f"A race on fresh random seeds: {confirmation.race.words}."
    yield f"Fresh random seeds: {confirmation.words}."


def _search_note(record: StudyRecord, ridge: Ridge | None) -> Iterator[str]:
    counts, winner, answer = record.counts, record.winner, answer_of(record, ridge)
    if winner is not None and answer is not None:
        yield (
            f"Best: **{winner.setting}**, {in_words(record.metric)} {number(winner.value)} "
            f"({winner.evidence})."
        )
        said = f"Expect {estimate(answer.expected)} of it ({answer.evidence})"
        if answer.default is not None:
            said += f"; the default has {estimate(answer.default)}"
        if answer.difference is not None:
            off = difference_words(answer.difference, answer.metric, of=answer.expected)
            said += f", a difference of {off}"
        yield f"{said}."
    if record.confirmation is not None:
        yield from _fresh_words(record.confirmation)
    if ridge is not None:
        yield ridge_words(ridge)
        yield _optima(ridge.optimal, metric=in_words(record.metric))
    yield f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed trials"
    if record.earlier is not None:
        yield f"It {record.earlier.words}."


def _optima(optimal: Sequence[Optimum], *, metric: str) -> str:
    """The best explore fraction of every seed LR, as a Markdown table."""
    rows = [
        f"| {learning_rate(each.seed_lr)} | {fraction_estimate(each.raw)} | "
        f"{estimate(each.metric)} |"
        for each in optimal
    ]
    return "\n".join([f"| seed LR | best explore fraction | {metric} |", "|---|---|---|", *rows])


# Of a comparison: a trend over its rows, or their order.


def comparison_tiles(comparison: Comparison) -> tuple[Tile, ...]:
    """Slopes of a series; else the best row and how far it is from the one to compare with."""
    tiles = [
        Tile(
            label=f"{in_words(trend.metric)} per {PER_EPOCHS} explore epochs",
            value=short(trend.slope.value, sign=True),
            unit=slope_unit(trend.metric),
            note="; ".join(
                [
                    interval_words(trend.slope, sign=True),
                    *(
                        []
                        if trend.paper is None
                        else [f"the paper {short(trend.paper, sign=True)}"]
                    ),
                ]
            ),
        )
        for trend in comparison.trends
        if trend.metric == comparison.metric or trend.of_sharpness
    ]
    if not tiles and (best := best_row(comparison)) is not None:
        tiles += _best_tiles(comparison, best)
    return (
        *tiles,
        Tile(
            label="of the paper's epochs",
            value=percent(comparison.scale),
            note=budgets(comparison),
        ),
        Tile(
            label="random seeds per row",
            value=str(len(comparison.seeds)),
            note=f"{comparison.runs} in the paper" if comparison.runs else "",
        ),
    )


def _best_tiles(comparison: Comparison, best: RowOutcome) -> Iterator[Tile]:
    measured = best.metrics[comparison.metric]
    assert measured.mean is not None
    yield Tile(
        label=f"best {in_words(comparison.metric)}",
        value=number(measured.mean.value),
        note=best.label,
    )
    if (difference := measured.difference) is not None:
        yield Tile(
            label=f"against {comparison.rows[comparison.reference].label}",
            value=rounded_parts(difference, sign=True)[0],
            unit=unit_of(comparison.metric),
            note=f"{judged_shortly(difference, comparison.direction)}; "
            f"{interval_words(difference, sign=True)}",
        )


def comparison_words(comparison: Comparison) -> tuple[str, ...]:
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
    slope, seeds = trend.slope, counted_seeds(trend.seeds)
    unit = f" {slope_unit(trend.metric)}".rstrip()
    paper = ""
    if trend.paper is not None:
        rises = "rises" if trend.paper > 0 else "falls"
        paper = f"; in the paper it {rises} by {short(abs(trend.paper))}"
    if trend.p is None:
        return (
            f"{metric} changes by {number(slope.value, sign=True)}{unit} per {at}: one random "
            f"seed, so nothing says how much of it is chance{paper}."
        )
    if trend.told is None:
        return (
            f"{metric}: no trend can be told from {seeds}. The slope is "
            f"{rounded(slope, sign=True)}{unit} per {at}, an interval with zero in it "
            f"({p_value(trend.p)}){paper}."
        )
    amount = f"by {rounded(_size(slope))}{unit} per {at} ({p_value(trend.p)}, {seeds})"
    against = "" if trend.told == trend.expected else ", the other way than expected"
    return f"{metric} {trend.told} {amount}{against}{paper}."


def slope_unit(metric: str) -> str:
    """``points`` of a metric in percent; of others none, for their name stands beside it."""
    return "points" if unit_of(metric) == "points" else ""


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
    metric, best = comparison.metric, best_row(comparison)
    if best is None:
        return
    told = [
        (value, row.label)
        for row in comparison.rows
        if (value := row.metrics[metric].paper) is not None
    ]
    highest, choose = ("Highest", max) if comparison.direction == "maximize" else ("Lowest", min)
    paper = ""
    if told:
        value, label = choose(told)
        paper = f"; in the paper it is {label}, {value:g}"
    mean = rounded(best.metrics[metric].mean)
    yield f"{highest} {in_words(metric)}: {best.label}, {mean}{paper}."
    reference = comparison.rows[comparison.reference]
    for row in comparison.rows:
        if row is not reference and row.metrics[metric].mean is not None:
            difference = row.metrics[metric].difference
            said = (
                "not measured with the same random seeds"
                if difference is None
                else f"{difference_words(difference, metric)}, "
                f"{judged(difference, comparison.direction)}"
            )
            yield f"{row.label} against {reference.label}: {said}."


def _conditions(comparison: Comparison) -> str:
    scale = (
        "at the paper's epochs"
        if comparison.scale == 1
        else f"at {percent(comparison.scale)} of the paper's epochs "
        f"({budgets(comparison)}; boundaries are scaled with them)"
    )
    missing = sum(len(row.missing) for row in comparison.rows)
    gap = f" Runs that did not finish are left out: {missing}." if missing else ""
    few = (
        f" Fewer than {CLAIMING_SEEDS} random seeds are good for a look, not for a claim."
        if len(comparison.seeds) < CLAIMING_SEEDS
        else ""
    )
    return f"Every row was trained with {counted_seeds(len(comparison.seeds))}, {scale}.{few}{gap}"


def _beside_papers(comparison: Comparison) -> str:
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


def _size(slope: Estimate) -> Estimate:
    """Of a fall, the amount: both ends turned round."""
    if slope.value >= 0 or slope.low is None or slope.high is None:
        return slope
    return slope.model_copy(update={"value": -slope.value, "low": -slope.high, "high": -slope.low})
