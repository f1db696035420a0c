"""KneePruner for one's own Optuna studies: see docs/concepts/pruner.md."""

from knee_tune.study.pruners import KneePruner

__all__ = ["KneePruner"]
