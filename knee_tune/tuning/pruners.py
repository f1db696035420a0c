"""Pruners by name."""

from optuna.pruners import BasePruner, MedianPruner, NopPruner

STARTUP_TRIALS = 4
"""Complete trials before MedianPruner acts: enough for a median, few enough for a short study."""


def make_pruner(name: str, *, total_steps: int) -> BasePruner:
    """The pruner called ``name``.

    MedianPruner compares trials at equal steps. That is biased against long exploration (a trial
    that already decays looks better), so it stays out of the first half of the budget.
    """
    if name == "none":
        return NopPruner()
    return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=total_steps // 2)
