"""The curve of a LR range test, and what is read off it: one-cycle's maximum LR (appendix A)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

HALF_WINDOW = 5
"""Steps before and after a step whose losses its smoothed loss is the mean of."""

EXPLOSION = 4.0
"""The loss has exploded when it is so many times its minimum."""


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of every loss and its neighbours: fewer at both ends, and shifted nowhere."""
    sums = [0.0, *accumulate(losses)]
    ends = range(1, len(losses) + 1)
    windows = [(max(0, end - 1 - HALF_WINDOW), min(len(losses), end + HALF_WINDOW)) for end in ends]
    return [(sums[last] - sums[first]) / (last - first) for first, last in windows]


def exploded(losses: Sequence[float]) -> bool:
    """Whether the smoothed loss ends far above its minimum."""
    curve = smoothed(losses)
    return curve[-1] > EXPLOSION * min(curve)


@dataclass(frozen=True, kw_only=True)
class RangeReading:
    """What the paper reads off the curve."""

    minimum_lr: float
    """Where the smoothed loss is lowest."""
    suggested_lr: float
    """One order lower: the paper's maximum LR for one-cycle."""
    still_falling: bool
    """The minimum is at the last step: the range ends before the loss rises."""


def read_off(lrs: Sequence[float], losses: Sequence[float]) -> RangeReading:
    """The reading of a test of at least one step."""
    curve = smoothed(losses)
    lowest = min(range(len(curve)), key=curve.__getitem__)
    return RangeReading(
        minimum_lr=lrs[lowest],
        suggested_lr=lrs[lowest] / 10,
        still_falling=lowest == len(curve) - 1,
    )
