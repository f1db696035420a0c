"""knee-tune: find the seed LR and the explore fraction of a Knee learning-rate schedule."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knee_tune.study.suggest import suggest_knee as suggest_knee

__version__ = "0.1.0"

_PLACES = {"suggest_knee": "knee_tune.study.suggest"}
"""Where each public name is; torch and Optuna are imported when one is asked for."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
