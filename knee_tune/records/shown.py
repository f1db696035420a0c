"""Seed LR, explore fraction and trials as people read them, the same wherever they are shown."""

import math
from collections.abc import Mapping, Sequence

from knee_tune.records.values import Estimate

SPANS = 8
"""Of numbers that one line has room for."""


def percent(fraction: float) -> str:
    """``0.125`` as ``12.5%``: fractions more than 0.0001 apart never look the same."""
    return f"{100 * fraction:.4g}%"


def learning_rate(value: float) -> str:
    """As it was typed."""
    return f"{value:g}"


def explored(explore_fraction: float, decay: str | None = None) -> str:
    """``50%``; where several decays are searched ``50%, 1-sqrt decay``."""
    return percent(explore_fraction) + (f", {decay} decay" if decay else "")


def setting(seed_lr: float, explore_fraction: float | None, decay: str | None = None) -> str:
    """``seed LR 0.05, explore 50%``; without a fraction, of a baseline, the seed LR alone."""
    explore = "" if explore_fraction is None else f", explore {explored(explore_fraction, decay)}"
    return f"seed LR {learning_rate(seed_lr)}{explore}"


def counted(what: str, numbers: Sequence[int]) -> str:
    """``trials 0-3, 7``: some of them, at least one, by their numbers; how many if all mixed up."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    if len(spans) > SPANS:
        return f"{len(numbers)} {what}s"
    shown = ", ".join("-".join(map(str, span)) for span in spans)
    return f"{what}s {shown}" if "," in shown or "-" in shown else f"{what} {shown}"


# Numbers as people read them, the same in figures, tables and sentences.

SPLITS: Mapping[str, str] = {"train": "training", "valid": "validation", "test": "test"}
"""How metric names begin, and the split of the data that says."""

NAMES: Mapping[str, str] = {
    "ppl": "perplexity",
    "word_ppl": "word perplexity",
    "bleu": "BLEU",
    "top5": "top-5 accuracy",
    "em": "exact match",
    "f1": "F1",
    "fisher": "Fisher score",
}
"""Metrics whose short names not everybody knows."""

NOTHING = "–"
"""What stands where there is no number."""


def fresh_seeds(count: int) -> str:
    """``1 fresh seed``, ``5 fresh seeds``."""
    return f"{count} fresh seed{'s' if count > 1 else ''}"


def number(value: float | None, *, sign: bool = False) -> str:
    """Four significant digits, also where the last ones are zeros: columns line up."""
    if value is None:
        return NOTHING
    return f"{value:{'+' if sign else ''}#.4g}".removesuffix(".")


def estimate(value: Estimate | None, *, sign: bool = False) -> str:
    """``0.5 [0.4, 0.6]``; without an interval the number alone."""
    if value is None:
        return NOTHING
    said = number(value.value, sign=sign)
    if value.low is None or value.high is None:
        return said
    return f"{said} [{number(value.low, sign=sign)}, {number(value.high, sign=sign)}]"


def rounded(value: Estimate | None, *, sign: bool = False) -> str:
    """As :func:`estimate`, with as many decimals as the interval leaves certain, and one more."""
    if value is None:
        return NOTHING
    said, *ends = rounded_parts(value, sign=sign)
    return f"{said} [{', '.join(ends)}]" if ends else said


def rounded_parts(value: Estimate, *, sign: bool = False) -> tuple[str, ...]:
    """Of :func:`rounded`: the number, and the ends of its interval if it has one."""
    if value.low is None or value.high is None:
        return (number(value.value, sign=sign),)
    numbers = value.value, value.low, value.high
    if math.isclose(value.high, value.low):
        return tuple(number(each, sign=sign) for each in numbers)
    half = (value.high - value.low) / 2
    decimals = min(9, max(0, 1 - math.floor(math.log10(half))))
    return tuple(f"{each:{'+' if sign else ''}.{decimals}f}" for each in numbers)


def fraction_estimate(value: Estimate | None) -> str:
    """``50% [40%, 60%]``."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return percent(value.value)
    return f"{percent(value.value)} [{percent(value.low)}, {percent(value.high)}]"


def correlation(value: Estimate) -> str:
    """Two decimals: ``-0.96 [-0.99, -0.92]``."""
    if value.low is None or value.high is None:
        return f"{value.value:.2f}"
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def p_value(p: float) -> str:
    """``p = 0.032``, ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def split_of(metric: str) -> str:
    """``validation`` of ``valid_ppl``; empty if the name does not say."""
    return SPLITS.get(metric.partition("_")[0], "")


def of_split(*metrics: str) -> str:
    """`` (validation split)`` of ``valid_ppl``, for a caption; empty if no name says its split."""
    splits = " and ".join(sorted({split_of(each) for each in metrics} - {""}))
    return f" ({splits} split)" if splits else ""


def in_words(metric: str) -> str:
    """``validation accuracy`` of ``valid_accuracy``."""
    split, _, rest = metric.partition("_")
    if split not in SPLITS or not rest:
        return NAMES.get(metric, metric)
    return f"{SPLITS[split]} {bare_in_words(rest)}"


def bare_in_words(metric: str) -> str:
    """``bits per byte`` of ``bits_per_byte``: a metric without its split."""
    return NAMES.get(metric, metric.replace("_", " "))


def sentence(text: str) -> str:
    """With a capital and nothing else changed."""
    return text[:1].upper() + text[1:]
