"""The answer of a study: which setting to use, what to expect of it, how sure that is."""

from collections.abc import Sequence

from knee_tune.config.recipe import DEFAULT_EXPLORE_FRACTION, Direction, Spec
from knee_tune.config.study import edges
from knee_tune.records.findings import Candidate, Confirmation, Confirmed, Optimum, Ridge
from knee_tune.records.shown import (
    estimate,
    fraction_estimate,
    in_words,
    learning_rate,
    number,
    percent,
    setting,
)
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import Estimate
from knee_tune.report.document import Tile
from knee_tune.report.run_figures import knee_of
from knee_tune.stats.estimates import judged

LEFT_OUT = "the search's own random seeds, each left out in turn of the choice"

BEST_OF_MANY = "the best trial of the search, so rather too good than too bad"


class Answer(Spec):
    """The recommended setting. Its numbers are means of ``metric``, over random seeds to come."""

    seed_lr: float
    explore_fraction: float
    metric: str
    expected: Estimate | None
    default: Estimate | None
    """The paper's default: the recipe's own seed LR with 50 % explore."""
    difference: Estimate | None
    """To the default, seed by seed, with its sign as measured."""
    confirmed: Confirmed
    evidence: str
    """Where the numbers come from."""

    @property
    def setting(self) -> str:
        """``seed LR 0.05, explore 50%``."""
        return setting(self.seed_lr, self.explore_fraction)


def answer_of(record: StudyRecord, ridge: Ridge | None) -> Answer | None:
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
            return _answer_of_fresh_seeds(fresh, confirmation)
    recommended = ridge.recommended if ridge else None
    alone = Estimate(value=winner.value) if winner.value is not None else None
    return Answer(
        seed_lr=winner.seed_lr,
        explore_fraction=winner.explore_fraction,
        metric=record.metric,
        expected=recommended.expected if recommended else alone,
        default=recommended.default if recommended else None,
        difference=recommended.difference if recommended else None,
        confirmed=winner.confirmed,
        evidence=LEFT_OUT if recommended and record.spec.replicates > 1 else BEST_OF_MANY,
    )


def _answer_of_fresh_seeds(fresh: Candidate, confirmation: Confirmation) -> Answer:
    default = next((each.mean for each in confirmation.candidates if each.default), None)
    return Answer(
        seed_lr=fresh.seed_lr,
        explore_fraction=fresh.explore_fraction,
        metric=confirmation.metric,
        expected=fresh.mean,
        default=default,
        difference=fresh.difference,
        confirmed=confirmation.says(fresh.point),
        evidence=f"{len(confirmation.seeds)} fresh random seeds, not used in the search",
    )


def tiles_of(answer: Answer, record: StudyRecord) -> tuple[Tile, ...]:
    """The numbers that people look for first."""
    metric, epochs = in_words(answer.metric), int(record.spec.recipe["epochs"])
    tiles = [
        Tile(label="seed LR", value=learning_rate(answer.seed_lr)),
        Tile(
            label="explore fraction",
            value=percent(answer.explore_fraction),
            note=f"{epochs * answer.explore_fraction:.3g} of {epochs} epochs, then the LR falls",
        ),
    ]
    if (expected := answer.expected) is not None:
        better = "lower is better" if record.direction == "minimize" else "higher is better"
        tiles.append(
            Tile(
                label=f"expected {metric}",
                value=number(expected.value),
                note=f"{_interval(expected)}; {better}".removeprefix("; "),
            )
        )
    if (difference := answer.difference) is not None:
        tiles.append(
            Tile(
                label="against the paper's default",
                value=number(difference.value, sign=True),
                note=_interval(difference, sign=True),
            )
        )
    tiles.append(Tile(label="confirmed by fresh seeds", value=answer.confirmed))
    return tuple(tiles)


def answer_in_words(answer: Answer, record: StudyRecord) -> tuple[str, ...]:
    """The answer as sentences."""
    metric = in_words(answer.metric)
    default = setting(float(record.spec.recipe["seed_lr"]), DEFAULT_EXPLORE_FRACTION)
    said = [f"Use {answer.setting}."]
    if answer.expected is not None:
        said.append(
            f"Expect a mean {metric} of {estimate(answer.expected)} over random seeds "
            f"({answer.evidence})."
        )
    if (difference := answer.difference) is not None and answer.default is not None:
        said.append(
            f"The paper's default ({default}) has {estimate(answer.default)}; the difference is "
            f"{estimate(difference, sign=True)}, {_told(difference, record.direction)}."
        )
    elif answer.default is None and answer.expected is not None:
        said.append(
            f"The paper's default ({default}) was not trained with the same random seeds, so "
            "nothing compares."
        )
    trial = record.winner.trial if record.winner else None
    if trial is not None and trial.steps_budget:
        knee = knee_of(record, trial)
        if knee.knee_step == knee.total_steps:
            said.append(
                f"Its warmup ({knee.warmup_steps} of {knee.total_steps} steps) and its explore "
                "phase take all of the budget, so any longer explore fraction is the same schedule."
            )
    confirmation = record.confirmation
    if confirmation is not None:
        said.append(f"Fresh random seeds: {confirmation.words}.")
    else:
        said.append("No fresh random seeds have confirmed it (knee-tune run --confirm 3:5 does).")
    said += [
        f"It lies on the edge of the search space ({edge.what}), so a better one may lie beyond: "
        f"the run command with --set '{edge.setting}' and more trials looks there."
        for edge in edges(
            record.spec, seed_lr=answer.seed_lr, explore_fraction=answer.explore_fraction
        )
    ]
    return tuple(said)


def _told(difference: Estimate, direction: Direction) -> str:
    """What the interval of the difference to the default says."""
    if difference.value == 0 and difference.low == difference.high:
        return "so it is the default itself or equals it"
    return judged(difference, direction)


def _interval(value: Estimate, *, sign: bool = False) -> str:
    if value.low is None or value.high is None:
        return ""
    low, high = number(value.low, sign=sign), number(value.high, sign=sign)
    return f"{percent(value.level)} interval {low} to {high}"


# The summary of a study, as Optuna Dashboard and MLflow show it above everything else.

IMPORTANCE = (
    "*Hyperparameter importance* on this page is PED-ANOVA's: what sets the best tenth of the "
    "trials apart. The report has it beside fANOVA's, which measures something else: shares of the "
    "metric's variance over the whole search space."
)

"""The dashboard knows one evaluator, and gives no place to name it but the note."""


def study_note(record: StudyRecord, ridge: Ridge | None, *, links: Sequence[str] = ()) -> str:
    """Markdown: what to use, how sure that is, and what it cost.

    ``links`` are further paragraphs: where to find more.
    """
    counts, winner, answer = record.counts, record.winner, answer_of(record, ridge)
    paragraphs = [f"# {record.name}", record.spec.description]
    if winner is not None and answer is not None:
        paragraphs.append(
            f"Best: **{winner.setting}**, {in_words(record.metric)} {number(winner.value)} "
            f"({winner.evidence})."
        )
        paragraphs.append(_expected(answer))
    if record.confirmation is not None:
        paragraphs.append(f"Fresh random seeds: {record.confirmation.words}.")
    if ridge is not None:
        paragraphs.append(ridge.words)
        paragraphs.append(_optima(ridge.optimal, metric=in_words(record.metric)))
    paragraphs.append(
        f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed trials"
    )
    paragraphs += record.steps.words
    if ridge is not None:
        paragraphs.append(IMPORTANCE)
    return "\n\n".join(paragraph for paragraph in (*paragraphs, *links) if paragraph)


def _expected(answer: Answer) -> str:
    said = f"Expect {estimate(answer.expected)} of it ({answer.evidence})"
    if answer.default is not None:
        said += f"; the paper's default has {estimate(answer.default)}"
    if answer.difference is not None:
        said += f", a difference of {estimate(answer.difference, sign=True)}"
    return f"{said}."


def _optima(optimal: Sequence[Optimum], *, metric: str) -> str:
    """The best explore fraction of every seed LR, as a table."""
    rows = [
        f"| {learning_rate(each.seed_lr)} | {fraction_estimate(each.raw)} | "
        f"{estimate(each.metric)} |"
        for each in optimal
    ]
    return "\n".join([f"| seed LR | best explore fraction | {metric} |", "|---|---|---|", *rows])
