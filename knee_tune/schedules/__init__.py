"""Learning-rate schedules as pure functions of the step, and as drop-in torch LR schedulers.

``schedule.lr(step)`` is the LR of update ``step`` = 1..total_steps. The schedules have no state
and need no torch. The torch schedulers (``KneeLR`` and its baselines) can be imported from here
too; torch is imported the first time that one of them is asked for.
"""

from typing import TYPE_CHECKING, Any

from knee_tune.schedules.decays import DECAYS, Decay
from knee_tune.schedules.schedule import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Knee,
    Linear,
    OneCycle,
    Phased,
    Schedule,
    StepDecay,
    learning_rates,
)

Exploring = Knee | Phased | StepDecay | Constant
"""Schedules that hold their seed LR after the warmup, up to their ``knee_step``: they explore."""

if TYPE_CHECKING:
    from knee_tune.schedules.torch import (
        ConstantLR,
        CosineLR,
        InverseSquareRootLR,
        KneeLR,
        LinearLR,
        OneCycleLR,
        ScheduleLR,
        StepDecayLR,
    )

__all__ = [
    "DECAYS",
    "Constant",
    "ConstantLR",
    "Cosine",
    "CosineLR",
    "Decay",
    "Exploring",
    "InverseSquareRoot",
    "InverseSquareRootLR",
    "Knee",
    "KneeLR",
    "Linear",
    "LinearLR",
    "OneCycle",
    "OneCycleLR",
    "Phased",
    "Schedule",
    "ScheduleLR",
    "StepDecay",
    "StepDecayLR",
    "learning_rates",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from knee_tune.schedules import torch

        return getattr(torch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
