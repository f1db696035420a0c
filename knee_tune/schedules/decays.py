"""The shapes of a decay: which part of the way down is left, and how far down an LR is.

A shape is 1 at the knee and 0 at the last step. ``progress`` is the share of the decay's steps that
is over, 0..1. Every shape stands beside its inverse.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

Decay = Literal["linear", "1-sqrt", "cosine", "exponential", "power"]
"""``linear`` is the paper's. ``1-sqrt`` is that of Haegele et al. (2024, arXiv:2405.18392).
``cosine`` is half a cosine. ``exponential`` is Megatron-LM's ``exponential`` of a WSD schedule,
which halves and is shifted to end at 0. ``power`` is a power of what is left, 2 unless told:
``1 - progress`` squared."""

DECAYS: tuple[Decay, ...] = get_args(Decay)

DEFAULT_POWER = 2.0

ROUNDING = 1e-12


class _Shape(NamedTuple):
    """What is left at a progress, and the progress at which so much is left; both of a power."""

    left: Callable[[float, float], float]
    progress: Callable[[float, float], float]


_SHAPES: Mapping[Decay, _Shape] = {
    "linear": _Shape(lambda p, power: 1 - p, lambda r, power: 1 - r),
    "1-sqrt": _Shape(lambda p, power: 1 - math.sqrt(p), lambda r, power: (1 - r) ** 2),
    "cosine": _Shape(
        lambda p, power: (1 + math.cos(math.pi * p)) / 2,
        lambda r, power: math.acos(2 * r - 1) / math.pi,
    ),
    "exponential": _Shape(
        lambda p, power: 2 * 0.5**p - 1, lambda r, power: -math.log2((1 + r) / 2)
    ),
    "power": _Shape(lambda p, power: (1 - p) ** power, lambda r, power: 1 - r ** (1 / power)),
}


def fraction_at(
    progress: float, *, decay: Decay, final: float = 0.0, power: float = DEFAULT_POWER
) -> float:
    """Fraction of the seed LR at a ``progress`` of 0..1; ``final`` is that at the last step."""
    return final + (1 - final) * _SHAPES[decay].left(progress, power)


def progress_at(
    fraction: float, *, decay: Decay, final: float = 0.0, power: float = DEFAULT_POWER
) -> float | None:
    """The progress at which a decay is down to a ``fraction`` of the seed LR; None: it never is.

    The inverse of :func:`fraction_at`. ``final`` must be below 1.
    """
    left = (fraction - final) / (1 - final)
    if -ROUNDING < left < 0:  # at the last step, whose LR was rounded on its way here
        left = 0.0
    return _SHAPES[decay].progress(left, power) if 0 <= left <= 1 else None
