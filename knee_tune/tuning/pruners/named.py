"""Pruners by name."""

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
)
from optuna.trial import FrozenTrial

from knee_tune.tuning.pruners.knee import KneePruner

STARTUP_TRIALS = 4
"""Complete trials before a raw-step pruner acts: enough for a median, few for a short study."""

KEPT_PERCENTILE = 25.0
"""What PercentilePruner keeps."""

REDUCTION = 3
BRACKETS = 4
"""Hyperband's: the first rung of its greediest bracket is 1/27 of the budget."""

_RAW_STEP = ("median", "percentile", "hyperband")


class PruningBrackets(BasePruner):
    """Hyperband whose brackets are the pruner's alone.

    Optuna shows a sampler only the trials of one bracket if it sees that the study's pruner is a
    HyperbandPruner. A search of grid points would try points again that another bracket has.
    """

    def __init__(self, hyperband: HyperbandPruner) -> None:
        self._hyperband = hyperband

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """As Hyperband does."""
        return self._hyperband.prune(study, trial)


def make_pruner(name: str, *, total_steps: int, replicates: int = 1) -> BasePruner:
    """The pruner called ``name`` for trials of ``replicates`` runs of ``total_steps``.

    Replicates are reported behind each other, so the steps of a trial run to their product. Median
    and percentile stay out of the first half of the first run: there a trial that already decays
    always looks better. (In later runs they judge the best so far, which the first run has set.)
    """
    match name:
        case "knee":
            return KneePruner()
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=total_steps // 2)
        case "percentile":
            return PercentilePruner(
                KEPT_PERCENTILE, n_startup_trials=STARTUP_TRIALS, n_warmup_steps=total_steps // 2
            )
        case "hyperband":
            longest = replicates * total_steps
            return PruningBrackets(
                HyperbandPruner(
                    min_resource=max(1, longest // REDUCTION ** (BRACKETS - 1)),
                    max_resource=longest,
                    reduction_factor=REDUCTION,
                )
            )
    raise ValueError(f"pruner must be knee, {', '.join(_RAW_STEP)} or none, got {name!r}")


def raw_step_warning(name: str) -> str | None:
    """One line on what is unfair about a pruner that compares at equal steps; None for others."""
    if name not in _RAW_STEP:
        return None
    return (
        f"pruner {name} compares trials at equal steps, where one that already decays looks better "
        "than one that still explores: it prunes long exploration too often (knee does not)"
    )
