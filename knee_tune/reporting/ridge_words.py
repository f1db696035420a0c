"""The verdict on the inverse relation, and what it means for somebody who has to choose."""

from collections.abc import Sequence

from knee_tune.reporting.intervals import LEVEL
from knee_tune.reporting.shown import p_value
from knee_tune.specs.ridge import Crossover, Optimum, Verdict
from knee_tune.specs.shown import percent, setting

SIGNIFICANT = 1 - LEVEL

ENOUGH_SEEDS = 10
"""Random seeds with which a relation that matters would show: below, nothing shown decides nothing.
"""


def verdict_of(crossover: Crossover | None, *, seeds: int) -> Verdict:
    """An inverse relation where the crossover test finds one.

    There is none where the seeds show the opposite of what it asks for: short exploring is better
    at the low seed LRs, or long exploring at the high ones (an interval beyond zero). Nor is there
    one to go by where :data:`ENOUGH_SEEDS` do not show it. All else is undecided: too few points
    or seeds.
    """
    if crossover is None:
        return "undecided"
    if crossover.p < SIGNIFICANT:
        return "inverse relation"
    return "no inverse relation" if _opposed(crossover) or seeds >= ENOUGH_SEEDS else "undecided"


def words_of(crossover: Crossover | None, optimal: Sequence[Optimum], *, seeds: int) -> str:
    """The verdict and what to do, in a few sentences."""
    if crossover is None:
        return _too_little(optimal, seeds=seeds)
    evidence = f"(crossover test {p_value(crossover.p)}, {seeds} random seeds)"
    verdict = verdict_of(crossover, seeds=seeds)
    if verdict == "inverse relation":
        return (
            f"The best explore fraction falls as the seed LR rises {evidence}: with a small "
            f"seed LR explore long, with a large one start to decay early. {_advice(optimal)}"
        )
    if verdict == "undecided":
        return (
            f"Undecided: the differences between long and short exploring may be chance "
            f"{evidence}. More random seeds, or a wider range of seed LRs, would tell."
        )
    instead = _opposite(crossover) if _opposed(crossover) else _not_shown(crossover)
    return f"No inverse relation {evidence}: {instead} {_advice(optimal)}"


def _opposed(crossover: Crossover) -> bool:
    """Whether the seeds show the opposite of an inverse relation at one end."""
    return crossover.low_lrs.side < 0 or crossover.high_lrs.side > 0


def _not_shown(crossover: Crossover) -> str:
    """At which end the seeds do not tell long exploring from short."""
    if crossover.low_lrs.side > 0:
        return (
            "long exploring is better at small seed LRs, and at the largest it is not shown to "
            "be worse than short exploring."
        )
    if crossover.high_lrs.side < 0:
        return (
            "short exploring is better at large seed LRs, and at the smallest it is not shown to "
            "be worse than long exploring."
        )
    return "long and short exploring are not shown to differ."


def _opposite(crossover: Crossover) -> str:
    """What the seeds show instead."""
    low, high = crossover.low_lrs.side, crossover.high_lrs.side
    if low < 0 < high:
        return "short exploring is better at small seed LRs and long exploring at large ones."
    if high > 0:
        where = "at small and at large seed LRs" if low > 0 else "also at the largest seed LRs"
        return f"long exploring is better {where} that were tried."
    where = "at small and at large seed LRs" if high < 0 else "also at the smallest seed LRs"
    return f"short exploring is better {where} that were tried."


def _advice(optimal: Sequence[Optimum]) -> str:
    """The best fractions at the ends and in the middle of the seed LRs."""
    known = [(each.seed_lr, each.gp or each.raw) for each in optimal if each.gp or each.raw]
    if not known:
        return ""
    ends = [known[index] for index in sorted({0, len(known) // 2, len(known) - 1})]
    parts = [
        f"{percent(estimate.value)}{_range(estimate.low, estimate.high)} at {setting(lr, None)}"
        for lr, estimate in ends
        if estimate is not None
    ]
    return f"Best explore fraction: {', '.join(parts)}."


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({percent(low)} to {percent(high)})"


def _too_little(optimal: Sequence[Optimum], *, seeds: int) -> str:
    if seeds < 2:
        return (
            "Undecided: one random seed cannot tell an inverse relation from chance. Run the study "
            "with --replicates 5 or more."
        )
    if len(optimal) < 3:
        return "Undecided: an inverse relation needs three seed LRs or more to show."
    return (
        "Undecided: three seed LRs or more need explore fractions up to 0.3 as well as from 0.6 to "
        "0.9 to be compared."
    )
