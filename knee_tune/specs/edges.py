"""Is a point on the edge of the search space, so that a better one may lie beyond?"""

from knee_tune.specs.base import Spec
from knee_tune.specs.study import StudySpec

WIDER = 10**0.5
"""Factor by which a bound of the seed LR moves: half a decade, some points of the grid."""


class Edge(Spec):
    """One parameter at the end of its range."""

    what: str
    """As in ``largest seed LR``."""
    setting: str
    """What to give to ``--set`` to look beyond, as in ``space.seed_lr.high=0.4``."""


def edges(spec: StudySpec, *, seed_lr: float, explore_fraction: float) -> tuple[Edge, ...]:
    """The edges of the study's space that the point lies on.

    Where nothing lies beyond there is no edge: at an explore fraction of 0, or with less than
    a step left to 1. A parameter with a single value was fixed, so it has no edge either.
    """
    found = []
    ends = _ends(seed_lr, spec.seed_lrs)
    if ends is not None:
        end, inner = ends
        factor = WIDER if end > inner else 1 / WIDER
        listed = spec.space.seed_lr.values and spec.seed_lrs
        beyond = float(f"{end * (end / inner if listed else factor):.3g}")
        found.append(_edge("seed LR", end, inner, beyond, listed))
    ends = _ends(explore_fraction, spec.explore_fractions)
    if ends is not None:
        end, inner = ends
        listed = spec.space.explore_fraction.values and spec.explore_fractions
        step = spec.space.explore_fraction.step or abs(end - inner)
        beyond = round(max(0.0, end + step if end > inner else end - step), 6)
        if end > 0 and beyond < 1:
            found.append(_edge("explore fraction", end, inner, beyond, listed))
    return tuple(found)


def _ends(value: float, points: tuple[float, ...]) -> tuple[float, float] | None:
    """The end of the range that ``value`` is, and the point beside it; None if it is none."""
    if len(points) > 1 and value == points[0]:
        return points[0], points[1]
    if len(points) > 1 and value == points[-1]:
        return points[-1], points[-2]
    return None


def _edge(
    name: str, end: float, inner: float, beyond: float, listed: tuple[float, ...] | None
) -> Edge:
    """Of a range the bound is moved, to a list the point is added."""
    upwards = end > inner
    field = f"space.{name.lower().replace(' ', '_')}"
    if listed is None:
        setting = f"{field}.{'high' if upwards else 'low'}={beyond:g}"
    else:
        points = sorted({*listed, beyond})
        setting = f"{field}.values=[{', '.join(f'{point:g}' for point in points)}]"
    return Edge(what=f"{'largest' if upwards else 'smallest'} {name}", setting=setting)
