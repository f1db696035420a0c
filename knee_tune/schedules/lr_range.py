"""The schedule of Smith's LR range test (appendix A)."""

from dataclasses import dataclass
from typing import Literal

from knee_tune.schedules.base import check_budget


@dataclass(frozen=True, kw_only=True, slots=True)
class LRRange:
    """The LR grows by the same factor at every step, from ``seed_lr`` to ``high``."""

    seed_lr: float
    high: float
    total_steps: int
    name: Literal["lr_range"] = "lr_range"

    def __post_init__(self) -> None:
        check_budget(self)
        if not self.high > self.seed_lr or self.total_steps < 2:
            raise ValueError(
                f"an LR range needs two steps and seed_lr < high, got {self.total_steps} steps "
                f"from {self.seed_lr} to {self.high}"
            )

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps; ``high`` at the last."""
        if step == self.total_steps:
            return self.high
        grown: float = (self.high / self.seed_lr) ** ((step - 1) / (self.total_steps - 1))
        return self.seed_lr * grown
