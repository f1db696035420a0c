"""The summary of a study, as Optuna Dashboard and MLflow show it above everything else."""

from collections.abc import Sequence

from knee_tune.reporting.answer import Answer, answer_of
from knee_tune.reporting.shown import estimate, fraction_estimate, in_words, number
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.ridge import Optimum, Ridge
from knee_tune.specs.shown import learning_rate

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
