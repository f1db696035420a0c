"""What statistics say, in sentences: differences, the ridge's verdict, fresh seeds."""

from collections.abc import Sequence

from knee_tune.config.recipe import Direction
from knee_tune.records.findings import (
    CLAIMING_SEEDS,
    FEWEST_PAIRS,
    Confirmation,
    Crossover,
    Optimum,
    Race,
    Ridge,
)
from knee_tune.records.shown import (
    NOTHING,
    in_words,
    p_value,
    percent,
    rounded,
    rounded_parts,
    setting,
    split_of,
)
from knee_tune.records.values import Estimate

IN_POINTS = ("accuracy", "top5", "bleu", "em", "f1")
"""Metrics in percent, as ours are: a difference of 0.1 is a tenth of a point."""


def counted_seeds(count: int) -> str:
    """``one random seed``, ``3 random seeds``."""
    return "one random seed" if count == 1 else f"{count} random seeds"


def unit_of(metric: str, *, of: Estimate | None = None) -> str:
    """Of a difference: ``points`` of a metric in percent, else the metric without its split.

    ``of``: what the difference is of; at most 1, somebody's accuracy is a fraction.
    """
    bare = metric.partition("_")[2] if split_of(metric) else metric
    percentage = bare in IN_POINTS and (of is None or of.value > 1)
    return "points" if percentage else in_words(bare)


def difference_words(
    difference: Estimate | None, metric: str, *, of: Estimate | None = None
) -> str:
    """``+0.50 [0.20, 0.80] points``; ``of`` as in :func:`unit_of`."""
    if difference is None:
        return NOTHING
    return f"{rounded(difference, sign=True)} {unit_of(metric, of=of)}"


def interval_words(value: Estimate, *, sign: bool = False) -> str:
    """``95% interval 0.2 to 0.8``."""
    if value.low is None or value.high is None:
        return "one random seed: no interval"
    _, *ends = rounded_parts(value, sign=sign)
    return f"{percent(value.level)} interval {' to '.join(ends)}"


def short(value: float, *, sign: bool = False) -> str:
    """Two significant digits."""
    return f"{float(f'{value:.2g}'):{'+' if sign else ''}g}"


def judged(difference: Estimate, direction: Direction) -> str:
    """Whether a difference is good, and more than chance: to go on with after the number."""
    if difference.value == 0 and difference.low == difference.high:
        return "so the two are equal"
    if difference.low is None or difference.high is None:
        return "which one random seed cannot tell from chance"
    if difference.side == 0:
        return "which may be chance: the interval includes zero"
    return f"{'better' if difference.is_better(direction) else 'worse'} beyond chance"


def judged_shortly(difference: Estimate, direction: Direction) -> str:
    """The same in a word or three, below the number itself."""
    if difference.value == 0:
        return "no difference"
    sign = -1 if direction == "minimize" else 1
    better = "better" if sign * difference.value > 0 else "worse"
    return f"{better} beyond chance" if difference.side else f"{better}, but it may be chance"


def ridge_words(ridge: Ridge) -> str:
    """The verdict on the inverse relation and what to do, in a few sentences."""
    crossover, optimal, seeds = ridge.crossover, ridge.optimal, ridge.surface.seeds
    if crossover is None:
        return _too_little(optimal, seeds=seeds)
    evidence = f"(crossover test {p_value(crossover.p)}, {seeds} random seeds)"
    if ridge.verdict == "inverse relation":
        return (
            f"The best explore fraction falls as the seed LR rises {evidence}: with a small "
            f"seed LR explore long, with a large one start to decay early. {_advice(optimal)}"
        )
    if ridge.verdict == "undecided":
        return (
            f"Undecided: the differences between long and short exploring may be chance "
            f"{evidence}. More random seeds, or a wider range of seed LRs, would tell."
        )
    instead = _opposite(crossover) if crossover.opposed else _not_shown(crossover)
    return f"No inverse relation {evidence}: {instead} {_advice(optimal)}"


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


def told(confirmation: Confirmation) -> Confirmation:
    """It with its verdict, and how a race went, in words."""
    race = confirmation.race
    if race is not None:
        race = race.model_copy(update={"words": _race_words(confirmation, race)})
    words = _confirmation_words(confirmation)
    return confirmation.model_copy(update={"words": words, "race": race})


def _confirmation_words(confirmation: Confirmation) -> str:
    best, comparisons = confirmation.best, confirmation.comparisons
    seeds = len(confirmation.seeds)
    few = f"; {seeds} seeds make wide intervals, take {CLAIMING_SEEDS} or more to claim anything"
    note = few if seeds < CLAIMING_SEEDS else ""
    if best is None:
        return "not confirmed: no candidate was trained to its end with every seed"
    if confirmation.race is not None and seeds < FEWEST_PAIRS:
        return f"not confirmed: an interval takes {FEWEST_PAIRS} fresh seeds, there are {seeds}"
    if best.default and not comparisons:
        return "confirmed: the search found nothing better than the default"
    if best.default:
        return f"confirmed: the default itself has the best mean{note}"
    if best.difference is None:
        return "not confirmed: the default could not be trained, so nothing compares"
    if confirmation.confirmed:
        return f"confirmed: better than the default{note}"
    if best.difference.low == best.difference.high != 0:
        return f"not confirmed: all differences to the default are the same by chance{note}"
    return f"not confirmed: the interval of the difference to the default includes zero{note}"


def _race_words(confirmation: Confirmation, race: Race) -> str:
    best = confirmation.best
    if best is None:
        return "no point was trained to its end with every fresh seed"
    leads = f"{best.setting} {'wins' if race.ended else 'leads'}"
    if race.runner_up is None:
        return leads
    second = confirmation.candidates[race.runner_up].setting
    if race.lead is None:
        return f"{leads}, {second} is second"
    return f"{leads}, {difference_words(race.lead, confirmation.metric)} from the second, {second}"
