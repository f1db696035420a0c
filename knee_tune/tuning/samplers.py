"""Samplers that propose points of the search space's grid."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

STARTUP_TRIALS = 6
"""Random trials before a model of the surface is trusted."""


@dataclass(frozen=True)
class Axis:
    """One parameter's grid: the points that may be tried, ascending."""

    points: tuple[float, ...]
    log: bool = False

    def distribution(self) -> FloatDistribution:
        """The range the points span, as samplers and viewers see it."""
        return FloatDistribution(self.points[0], self.points[-1], log=self.log)

    def snap(self, value: float) -> float:
        """The point nearest to ``value``, by ratio on a log axis."""
        if self.log:
            return min(self.points, key=lambda point: max(point / value, value / point))
        return min(self.points, key=lambda point: abs(point - value))


def make_sampler(name: str, *, seed: int, axes: Mapping[str, Axis]) -> BaseSampler:
    """The sampler called ``name``, proposing points of ``axes`` only."""
    samplers: dict[str, Callable[[], BaseSampler]] = {
        "gp": lambda: GPSampler(
            seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
        ),
        "tpe": lambda: TPESampler(
            seed=seed,
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
            constant_liar=True,
            warn_independent_sampling=False,
        ),
        "random": lambda: RandomSampler(seed=seed),
    }
    return SnappingSampler(samplers[name](), axes=axes)


class SnappingSampler(BaseSampler):
    """Any Optuna sampler, with some parameters snapped to the nearest point of a grid.

    The snapped value is what Optuna stores, so every viewer shows the LR that was trained; and a
    seed LR recurs, without which no trunk could be shared (DESIGN section 6).
    """

    def __init__(self, sampler: BaseSampler, *, axes: Mapping[str, Axis]) -> None:
        self._sampler = sampler
        self._axes = axes

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The wrapped sampler's."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The wrapped sampler's proposal, snapped."""
        proposal = self._sampler.sample_relative(study, trial, search_space)
        return {name: self._snap(name, value) for name, value in proposal.items()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The wrapped sampler's proposal, snapped."""
        value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
        return self._snap(param_name, value)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Passed on."""
        self._sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Passed on."""
        self._sampler.reseed_rng()

    def _snap(self, name: str, value: Any) -> Any:
        axis = self._axes.get(name)
        return value if axis is None else axis.snap(value)
