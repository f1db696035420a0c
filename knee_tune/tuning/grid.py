"""The full grid, in the order in which trunks are shared best."""

from collections import Counter
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from knee_tune.tuning.points import PointSampler, untried


class TrunkOrderedGridSampler(PointSampler):
    """Every point of the grid once, seed LR by seed LR, the longest explore phase first.

    The first trial of a seed LR trains its whole trunk and leaves every knot; the others branch
    from it. They have to wait for it, so whoever asks while a trial of that seed LR is running
    takes the next seed LR that nobody trains. Only when every seed LR with points left is being
    trained does it join one, the one with the fewest running trials.

    Stateless: the next point depends on the study's trials alone, so a continued grid goes on with
    the points that are missing. The last point comes again once none is left
    (see :func:`knee_tune.tuning.points.wanted`).
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point."""
        trials = study.get_trials(deepcopy=False)
        left = [dict(zip(self._axes, point, strict=True)) for point in untried(trials, self._axes)]
        running = Counter(
            other.params.get("seed_lr") for other in trials if other.state == TrialState.RUNNING
        )
        last = {name: axis.points[-1] for name, axis in self._axes.items()}
        return min(
            left or [last],
            key=lambda point: (
                running[point["seed_lr"]],
                point["seed_lr"],
                -point["explore_fraction"],
            ),
        )

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """No parameter of the search comes this way: the grid knows no other."""
        raise KeyError(param_name)
