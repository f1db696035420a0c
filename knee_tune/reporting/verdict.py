"""From fresh runs to a verdict: which candidate wins, and is it better than the paper's default?"""

from collections.abc import Sequence

from knee_tune.reporting.intervals import mean_estimate, paired_estimate
from knee_tune.specs.confirmation import CLAIMING_SEEDS, Candidate, Confirmation
from knee_tune.specs.recipe import Direction


def judge(candidates: Sequence[Candidate], *, metric: str, direction: Direction) -> Confirmation:
    """Fill in means and differences, and decide.

    The winner has the best mean over the fresh seeds. It is confirmed if it is the paper's default
    itself, or if the interval of its paired difference to the default lies on the better side of
    zero and, with few seeds, has a width: accuracies often differ by the same amount by chance.
    Every candidate that was trained counts as a comparison, those that failed as well: the
    winner is the best of them, so one alone would be believed too easily.
    """
    comparisons = sum(not candidate.default for candidate in candidates)
    default = next((each for each in candidates if each.default and _complete(each)), None)
    measured = tuple(_measured(each, default, comparisons) for each in candidates)
    sign = 1 if direction == "minimize" else -1
    ranked = sorted(
        (sign * each.mean.value, index) for index, each in enumerate(measured) if each.mean
    )
    winner = ranked[0][1] if ranked else None
    best = None if winner is None else measured[winner]
    seeds = len(candidates[0].runs)
    confirmed = best is not None and (
        best.default
        or (
            best.difference is not None
            and best.difference.is_better(direction)
            and (seeds >= CLAIMING_SEEDS or best.difference.low != best.difference.high)
        )
    )
    return Confirmation(
        metric=metric,
        direction=direction,
        candidates=measured,
        comparisons=comparisons,
        winner=winner,
        confirmed=confirmed,
        words=_words(
            best,
            comparisons=comparisons,
            confirmed=confirmed,
            seeds=seeds,
        ),
    )


def _complete(candidate: Candidate) -> bool:
    return len(candidate.values) == len(candidate.runs)


def _measured(candidate: Candidate, default: Candidate | None, comparisons: int) -> Candidate:
    if not _complete(candidate):
        return candidate
    update = {"mean": mean_estimate(candidate.values)}
    if default is not None and not candidate.default:
        update["difference"] = paired_estimate(
            candidate.values, default.values, comparisons=comparisons
        )
    return candidate.model_copy(update=update)


def _words(best: Candidate | None, *, comparisons: int, confirmed: bool, seeds: int) -> str:
    few = f"; {seeds} seeds make wide intervals, take {CLAIMING_SEEDS} or more to claim anything"
    note = few if seeds < CLAIMING_SEEDS else ""
    if best is None:
        return "not confirmed: no candidate was trained to its end with every seed"
    if best.default and not comparisons:
        return "confirmed: the search found nothing better than the paper's default"
    if best.default:
        return f"confirmed: the paper's default itself has the best mean{note}"
    if best.difference is None:
        return "not confirmed: the paper's default could not be trained, so nothing compares"
    if confirmed:
        return f"confirmed: better than the paper's default{note}"
    if best.difference.low == best.difference.high != 0:
        return f"not confirmed: all differences to the default are the same by chance{note}"
    return f"not confirmed: the interval of the difference to the default includes zero{note}"
