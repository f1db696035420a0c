"""The points of a search: which there are, which were tried, whether another trial is wanted."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from knee_tune.tuning.recovery import current, params_of

Point = tuple[float, ...]
"""One value for each axis."""


@dataclass(frozen=True)
class Axis:
    """One parameter's grid: the points that may be tried, ascending."""

    points: tuple[float, ...]
    log: bool = False

    def distribution(self) -> FloatDistribution:
        """The range the points span, as samplers and viewers see it."""
        return FloatDistribution(self.points[0], self.points[-1], log=self.log)

    def position(self, value: float) -> float:
        """Where ``value`` lies between the first point (0) and the last (1), by ratio if log."""
        first, last = self.points[0], self.points[-1]
        if first == last:
            return 0.0
        if self.log:
            return math.log(value / first) / math.log(last / first)
        return (value - first) / (last - first)

    def snap(self, value: float) -> float:
        """The point nearest to ``value``, by ratio on a log axis."""
        return min(self.points, key=lambda point: abs(self.position(point) - self.position(value)))


class PointSampler(BaseSampler):
    """A sampler that proposes points of ``axes``."""

    def __init__(self, *, axes: Mapping[str, Axis]) -> None:
        self._axes = axes

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every axis: a point is always proposed as a whole."""
        return {name: axis.distribution() for name, axis in self._axes.items()}


def untried(trials: Iterable[FrozenTrial], axes: Mapping[str, Axis]) -> list[Point]:
    """The points of the grid, in its order, where no trial ran, runs, waits or failed."""
    tried = {tuple(params_of(trial).get(name) for name in axes) for trial in trials}
    grid = product(*(axis.points for axis in axes.values()))
    return [point for point in grid if point not in tried]


def longest_explored(trials: Iterable[FrozenTrial]) -> dict[float, float]:
    """The longest explore fraction that any trial has, by seed LR: how far its trunk reaches."""
    longest: dict[float, float] = {}
    for trial in trials:
        if "seed_lr" in trial.params:
            lr, fraction = trial.params["seed_lr"], trial.params.get("explore_fraction", 0.0)
            longest[lr] = max(fraction, longest.get(lr, 0.0))
    return longest


def wanted(
    study: optuna.Study,
    axes: Mapping[str, Axis],
    *,
    trials: int | None,
    besides: int | None = None,
) -> bool:
    """Whether the study wants another trial: it has fewer than ``trials``, and a point is left.

    Trials that any driver asked for count, and one that lives on under another number counts once.
    None for ``trials`` means every point. ``besides`` is the number of a trial to leave out.
    """
    known = [trial for trial in study.get_trials(deepcopy=False) if trial.number != besides]
    states = [trial.state for trial in current(known)]
    queued = states.count(TrialState.WAITING)
    if trials is not None and len(states) - queued >= trials:
        return False
    return queued > 0 or bool(untried(known, axes))
