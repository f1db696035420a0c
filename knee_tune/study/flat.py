"""When a search is flat: no point is left whose expected improvement is worth what it costs.

Optuna's own terminator is the model. It is not used: it is deprecated since 4.9, to be removed in
6.0; what it compares with are errors of cross-validation, which runs here do not have; and it knows
no costs.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.records.shown import setting
from knee_tune.stats.estimates import Floats
from knee_tune.study.attributes import runs_of
from knee_tune.study.recovery import current
from knee_tune.study.samplers import Axes, Point, longest_explored, untried
from knee_tune.study.told import told_of

if TYPE_CHECKING:
    from optuna._gp.gp import GPRegressor
    from optuna._gp.search_space import SearchSpace

WORTH = 0.1
"""Of the noise between random seeds: what a whole run has to be expected to improve."""

FEWEST = 10
"""Complete trials before which nothing is known to be flat."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the most promising point that is left is expected to bring."""

    point: Point
    improvement: float
    """Expected, for each whole run that it costs, in the metric's unit."""
    noise: float
    """Standard deviation of a trial's value between random seeds."""
    measured: bool
    """Whether ``noise`` is that of replicates, or else the Gaussian process' own estimate."""

    @property
    def flat(self) -> bool:
        """Whether it is not worth its cost."""
        return self.improvement < WORTH * self.noise

    @property
    def words(self) -> str:
        """One line with the numbers."""
        source = "of its replicates" if self.measured else "as the Gaussian process estimates it"
        return (
            f"flat: the most promising point left, {setting(*self.point)}, is expected to improve "
            f"the best by {self.improvement:.2g} per whole run, less than {WORTH:g} of the noise "
            f"between random seeds, {self.noise:.2g} ({source})"
        )


def outlook_of(study: optuna.Study, axes: Axes) -> Outlook | None:
    """The outlook of a search; None while it has too few trials, some are queued, or none is left.

    Expected improvement is that over the highest mean of the Gaussian process at the points tried,
    not over the luckiest value. A point costs the share of a whole run that its trunk has not yet
    trained. It depends on the study's trials alone.
    """
    from optuna._gp.search_space import SearchSpace  # slow

    trials = current(study.get_trials(deepcopy=False))
    if any(each.state == TrialState.WAITING for each in trials):
        return None
    left = untried(trials, axes)
    space: dict[str, BaseDistribution] = {name: axis.distribution() for name, axis in axes.items()}
    told = [
        each
        for each in told_of(trials, space, direction=study.direction)
        if each.state == TrialState.COMPLETE
    ]
    if not left or len(told) < FEWEST:
        return None
    sign = -1 if study.direction == StudyDirection.MINIMIZE else 1
    gains = sign * np.array([each.values[0] for each in told])
    scale = float(gains.std())
    if scale == 0:
        return None
    process = _fitted(told, (gains - gains.mean()) / scale, within := SearchSpace(space))
    means, _ = _posterior(process, within, [each.params for each in told])
    points = [dict(zip(axes, point, strict=True)) for point in left]
    ahead, errors = _posterior(process, within, points)
    expected = _improvement(ahead - means.max(), errors) / _costs(left, axes, trials)
    best = int(expected.argmax())
    spread = _spread(trials)
    return Outlook(
        point=left[best],
        improvement=float(expected[best]) * scale,
        noise=math.sqrt(process.noise_var.item()) * scale if spread is None else spread,
        measured=spread is not None,
    )


def flat_by(study: optuna.Study, axes: Axes) -> Outlook | None:
    """The outlook of a search that is flat; None if it is not."""
    outlook = outlook_of(study, axes)
    return outlook if outlook is not None and outlook.flat else None


def _fitted(told: Sequence[FrozenTrial], scores: Floats, space: "SearchSpace") -> "GPRegressor":
    """The Gaussian process by which Optuna's GPSampler would propose."""
    from optuna._gp import gp, prior  # slow

    return gp.fit_kernel_params(
        X=space.get_normalized_params(list(told)),
        Y=scores,
        is_categorical=space.is_categorical,
        log_prior=prior.default_log_prior,
        minimum_noise=prior.DEFAULT_MINIMUM_NOISE_VAR,
        deterministic_objective=False,
    )


def _posterior(
    process: "GPRegressor", space: "SearchSpace", points: Sequence[dict[str, Any]]
) -> tuple[Floats, Floats]:
    """Means and standard deviations at points, without noise."""
    import torch  # slow

    places = space.get_normalized_params([None] * len(points), list(points))  # type: ignore[list-item]
    mean, variance = process.posterior(torch.from_numpy(places))
    return mean.numpy(), np.sqrt(variance.numpy())


def _improvement(ahead: Floats, errors: Floats) -> Floats:
    """Expected improvement of normal values that lie ``ahead`` of the best on average."""
    from scipy.special import ndtr  # slow

    errors = np.maximum(errors, 1e-12)
    z = ahead / errors
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return np.asarray(errors * (z * ndtr(z) + density))


def _costs(points: Sequence[Point], axes: Axes, trials: Iterable[FrozenTrial]) -> Floats:
    """Share of a whole run that each point still has to train."""
    trunks = longest_explored(trials)
    named = [dict(zip(axes, point, strict=True)) for point in points]
    return np.array(
        [1 - min(at["explore_fraction"], trunks.get(at["seed_lr"], 0.0)) for at in named]
    )


def _spread(trials: Iterable[FrozenTrial]) -> float | None:
    """Standard deviation of a trial's value by its replicates; None where it has one."""
    complete = [each.user_attrs for each in trials if each.state == TrialState.COMPLETE]
    of_means = [
        each["spread"] ** 2 / runs_of(each) for each in complete if each.get("spread") is not None
    ]
    return math.sqrt(fmean(of_means)) if of_means else None
