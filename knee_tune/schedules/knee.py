"""The Knee schedule (Iyer et al., JMLR 2023, section 4)."""

from dataclasses import dataclass
from typing import Literal

from knee_tune.schedules.base import check_budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Knee:
    """Linear warmup, explore at ``seed_lr``, then linear decay to zero at the last step.

    Without explore steps it is linear decay; without decay steps (warmup + explore = total) it
    never leaves ``seed_lr``.
    """

    seed_lr: float
    total_steps: int
    explore_steps: int
    warmup_steps: int = 0
    name: Literal["knee"] = "knee"

    def __post_init__(self) -> None:
        check_budget(self)

    @property
    def knee_step(self) -> int:
        """The last step before the decay: warmup and explore together."""
        return self.warmup_steps + self.explore_steps

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        knee = self.knee_step
        if step <= self.warmup_steps:
            return self.seed_lr * step / self.warmup_steps
        if step <= knee:
            return self.seed_lr
        return max(0.0, self.seed_lr * (1 - (step - knee) / (self.total_steps - knee)))
