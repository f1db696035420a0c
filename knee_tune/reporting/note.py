"""The summary of a study, as Optuna Dashboard and MLflow show it above everything else."""

from collections.abc import Sequence

from knee_tune.reporting.shown import estimate, fraction_estimate, in_words, number
from knee_tune.specs.records import StudyRecord
from knee_tune.specs.ridge import Optimum, Recommendation, Ridge
from knee_tune.specs.shown import learning_rate, setting


def study_note(record: StudyRecord, ridge: Ridge | None, *, links: Sequence[str] = ()) -> str:
    """Markdown: what to use, how sure that is, and what it cost.

    ``links`` are further paragraphs: where to find more.
    """
    best, counts = record.best, record.counts
    paragraphs = [f"# {record.name}", record.spec.description]
    if ridge is not None and ridge.recommended is not None:
        paragraphs.append(_recommended(ridge.recommended, metric=in_words(record.metric)))
    if best is not None:
        paragraphs.append(
            f"Best trial: **{setting(best.seed_lr, best.explore_fraction)}** with "
            f"{in_words(record.metric)} {number(best.value)} (trial {best.number})."
        )
    if record.confirmation is not None:
        paragraphs.append(f"Fresh random seeds: {record.confirmation.words}.")
    if ridge is not None:
        paragraphs.append(ridge.words)
        paragraphs.append(_optima(ridge.optimal, metric=in_words(record.metric)))
    paragraphs.append(
        f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed trials"
    )
    paragraphs += record.steps.words
    return "\n\n".join(paragraph for paragraph in (*paragraphs, *links) if paragraph)


def _recommended(recommended: Recommendation, *, metric: str) -> str:
    said = (
        f"Recommended: **{setting(recommended.seed_lr, recommended.explore_fraction)}**, expected "
        f"{metric} {estimate(recommended.expected)}"
    )
    if recommended.default is not None:
        said += f"; the paper's default has {estimate(recommended.default)}"
    if recommended.difference is not None:
        said += f", a difference of {estimate(recommended.difference, sign=True)}"
    return f"{said}."


def _optima(optimal: Sequence[Optimum], *, metric: str) -> str:
    """The best explore fraction of every seed LR, as a table."""
    rows = [
        f"| {learning_rate(each.seed_lr)} | {fraction_estimate(each.raw)} | "
        f"{estimate(each.metric)} |"
        for each in optimal
    ]
    return "\n".join([f"| seed LR | best explore fraction | {metric} |", "|---|---|---|", *rows])
