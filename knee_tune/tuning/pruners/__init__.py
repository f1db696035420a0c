"""Pruners: KneePruner, which compares runs where their schedules agree, and Optuna's own."""

from knee_tune.tuning.pruners.knee import KneePruner
from knee_tune.tuning.pruners.named import make_pruner, raw_step_warning

__all__ = ["KneePruner", "make_pruner", "raw_step_warning"]
