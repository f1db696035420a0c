"""KneePruner for one's own Optuna studies: see docs/concepts/pruner.md."""

from knee_tune.tuning.pruners.knee import KneePruner

__all__ = ["KneePruner"]
