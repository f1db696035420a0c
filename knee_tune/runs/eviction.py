"""Which trunk checkpoints to drop when they take too much room: the rule "gap"."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Knot:
    """One checkpoint of a trunk."""

    trunk: str
    step: int
    size: int
    """In bytes."""
    idle: int
    """Runs of the store since the one that used this trunk last."""
    in_use: bool = False
    """Whether its trunk is being trained: then it stays."""


def to_drop(knots: Iterable[Knot], *, limit: int) -> list[Knot]:
    """The checkpoints to drop, in order, until what is left takes at most ``limit`` bytes.

    First goes the one with the smallest distance to the next lower checkpoint of its trunk, which
    is what a run has to train again, over ``sqrt(1 + idle)``. Sizes do not enter: where a
    checkpoint is big, a step is dear, too.
    """
    kept = sorted(knots, key=lambda knot: (knot.trunk, knot.step))
    size = sum(knot.size for knot in kept)
    dropped = []
    while size > limit:
        droppable = [
            (_score(lower, knot), index)
            for index, (lower, knot) in enumerate(zip([None, *kept], kept, strict=False))
            if not knot.in_use
        ]
        if not droppable:
            break
        dropped.append(kept.pop(min(droppable)[1]))
        size -= dropped[-1].size
    return dropped


def _score(lower: Knot | None, knot: Knot) -> float:
    start = lower.step if lower is not None and lower.trunk == knot.trunk else 0
    return (knot.step - start) / math.sqrt(1 + knot.idle)
