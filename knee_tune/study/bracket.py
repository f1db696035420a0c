"""How a search starts: seed LRs around the best one, all at one explore fraction, before a model.

Six random trials leave a model with points that say little of each other. Neighbours at one explore
fraction say on which side the best seed LR lies; ``benchmarks/whole.py`` has the difference.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.config.recipe import DEFAULT_DECAY, DEFAULT_EXPLORE_FRACTION
from knee_tune.study.recovery import current, params_of

RATIO = 2.5
"""How far the next seed LR lies from the best one, if the grid has one there."""


class BracketSampler(BaseSampler):
    """A bracket of seed LRs, then the proposals of another sampler.

    The first trial is at ``centre``, a seed LR of the grid. Each next one is beside the best so
    far, where no trial is on that side yet: at the seed LR of the grid nearest to :data:`RATIO`
    times it, or to that part of it. It ends when the best has trials on both sides, or the grid
    does: mostly after three or four. All are at the explore fraction nearest to the paper's 50 %,
    with a linear decay. What was pruned or diverged counts as worst, and beyond it nothing is
    tried. Drivers that ask at the same time get both sides at once, and points of the other sampler
    then.

    The next point depends on the study's trials alone, so a continued study goes on where it was.
    """

    def __init__(
        self,
        then: BaseSampler,
        *,
        seed_lrs: tuple[float, ...],
        explore_fractions: tuple[float, ...],
        several_decays: bool,
        centre: float,
        seed: int,
    ) -> None:
        self._then, self._seed_lrs, self._seed = then, seed_lrs, seed
        self._centre = nearest_lr(seed_lrs, centre)
        at = min(explore_fractions, key=lambda each: abs(each - DEFAULT_EXPLORE_FRACTION))
        self._beside: dict[str, Any] = {"explore_fraction": at}
        if several_decays:
            self._beside["decay"] = DEFAULT_DECAY

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """That of the other sampler."""
        return self._then.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point of the bracket; once it is complete the other sampler's."""
        others = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        seed_lr = self._next(others, minimize=study.direction == StudyDirection.MINIMIZE)
        if seed_lr is None:
            return self._then.sample_relative(study, trial, search_space)
        return {"seed_lr": seed_lr, **self._beside}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The other sampler's."""
        return self._then.sample_independent(study, trial, param_name, param_distribution)

    def _next(self, trials: Iterable[FrozenTrial], *, minimize: bool) -> float | None:
        """The seed LR that is missing; None once the bracket was complete, or while others run."""
        losses: dict[float, float | None] = {}
        for trial in current(trials):
            params = params_of(trial)
            if params.items() >= self._beside.items():
                losses[params["seed_lr"]] = _loss(trial, minimize=minimize)
                if None not in losses.values() and not self._missing(losses):
                    return None  # for good, whatever was found since
        missing = self._missing(losses)
        return missing[self._seed % len(missing)] if missing else None

    def _missing(self, losses: Mapping[float, float | None]) -> list[float]:
        """The centre, then seed LRs beside the best one, on the sides where there is no trial."""
        if self._centre not in losses:
            return [self._centre]
        finished = {lr: loss for lr, loss in losses.items() if loss is not None}
        best = min(finished, key=lambda lr: (finished[lr], lr), default=self._centre)
        sides = [([lr for lr in self._seed_lrs if lr < best], best / RATIO)]
        if finished.get(best) != math.inf:
            sides.append(([lr for lr in self._seed_lrs if lr > best], best * RATIO))
        return [
            nearest_lr(side, aim) for side, aim in sides if side and not losses.keys() & {*side}
        ]


def nearest_lr(seed_lrs: Iterable[float], aim: float) -> float:
    """The one that is nearest to ``aim`` by ratio, the smaller of two."""
    return min(seed_lrs, key=lambda lr: (abs(math.log(lr / aim)), lr))


def _loss(trial: FrozenTrial, *, minimize: bool) -> float | None:
    """The lower the better; infinite of a trial without a value, None while there may be one."""
    if not trial.state.is_finished():
        return None
    if trial.state != TrialState.COMPLETE or trial.value is None:
        return math.inf
    return trial.value if minimize else -trial.value
