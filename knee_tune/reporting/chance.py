"""Whether a difference is more than chance, in words."""

from knee_tune.specs.estimate import Estimate
from knee_tune.specs.recipe import Direction


def judged(difference: Estimate, direction: Direction) -> str:
    """What the interval says, to go on with after the number itself."""
    if difference.low is None or difference.high is None:
        return "which one random seed cannot tell from chance"
    if difference.side == 0:
        return "which may be chance: the interval includes zero"
    return f"{'better' if difference.is_better(direction) else 'worse'} beyond chance"
