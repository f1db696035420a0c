"""knee-tune: find the seed LR and the explore fraction of a Knee learning-rate schedule.

What is public is imported when it is first used: ``import knee_tune`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knee_tune.config.recipe import Metric, Optimizer, Recipe, SimpleRecipe
    from knee_tune.runs.trunk_cache import TrunkCache
    from knee_tune.scripts.run import join
    from knee_tune.study.suggest import suggest_knee
    from knee_tune.tasks.base import FusableTask, Task
    from knee_tune.tasks.registry import TaskEntry
    from knee_tune.tasks.simple import SimpleTask
    from knee_tune.training.trunk_file import save_trunk

__version__ = "0.1.0"

_PUBLIC = {
    "FusableTask": "tasks.base",
    "Metric": "config.recipe",
    "Optimizer": "config.recipe",
    "Recipe": "config.recipe",
    "SimpleRecipe": "config.recipe",
    "SimpleTask": "tasks.simple",
    "Task": "tasks.base",
    "TaskEntry": "tasks.registry",
    "TrunkCache": "runs.trunk_cache",
    "join": "scripts.run",
    "save_trunk": "training.trunk_file",
    "suggest_knee": "study.suggest",
}
"""The module of each public name."""

__all__ = [
    "FusableTask",
    "Metric",
    "Optimizer",
    "Recipe",
    "SimpleRecipe",
    "SimpleTask",
    "Task",
    "TaskEntry",
    "TrunkCache",
    "__version__",
    "join",
    "save_trunk",
    "suggest_knee",
]


def __getattr__(name: str) -> Any:
    """Import a public name, and torch or Optuna with it if it needs them."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
