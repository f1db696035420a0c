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
    scores = [_score(lower, knot) for lower, knot in zip([None, *kept], kept, strict=False)]
    size = sum(knot.size for knot in kept)
    dropped = []
    while size > limit and (lowest := min(scores)) < math.inf:
        index = scores.index(lowest)
        dropped.append(kept.pop(index))
        size -= dropped[-1].size
        scores.pop(index)
        if index < len(kept):  # the one above is further from its neighbour now
            scores[index] = _score(kept[index - 1] if index else None, kept[index])
    return dropped


def _score(lower: Knot | None, knot: Knot) -> float:
    if knot.in_use:
        return math.inf
    start = lower.step if lower is not None and lower.trunk == knot.trunk else 0
    return (knot.step - start) / math.sqrt(1 + knot.idle)
