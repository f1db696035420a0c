"""knee-tune: find the seed LR and the explore fraction of a Knee learning-rate schedule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knee_tune.scripts.run import join
    from knee_tune.study.suggest import suggest_knee

__version__ = "0.1.0"

__all__ = ["__version__", "join", "suggest_knee"]

_PLACES = {"join": "knee_tune.scripts.run", "suggest_knee": "knee_tune.study.suggest"}


def __getattr__(name: str) -> Any:
    """Import what needs torch or Optuna when it is asked for."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
