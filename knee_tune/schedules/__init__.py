"""Learning-rate schedules as pure functions of the step.

``schedule.lr(step)`` is the LR of update ``step`` = 1..total_steps. No state, no torch.
"""

from knee_tune.schedules.baselines import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    OneCycle,
    StepDecay,
)
from knee_tune.schedules.knee import Knee

__all__ = ["Constant", "Cosine", "InverseSquareRoot", "Knee", "Linear", "OneCycle", "StepDecay"]
