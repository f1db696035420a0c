"""Seed LR, explore fraction and trials as people read them, the same wherever they are shown."""

from collections.abc import Sequence

SPANS = 8
"""Of numbers that one line has room for."""


def percent(fraction: float) -> str:
    """``0.125`` as ``12.5%``: fractions more than 0.0001 apart never look the same."""
    return f"{100 * fraction:.4g}%"


def learning_rate(value: float) -> str:
    """As it was typed."""
    return f"{value:g}"


def setting(seed_lr: float, explore_fraction: float | None) -> str:
    """``seed LR 0.05, explore 50%``; without a fraction, of a baseline, the seed LR alone."""
    explore = "" if explore_fraction is None else f", explore {percent(explore_fraction)}"
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
