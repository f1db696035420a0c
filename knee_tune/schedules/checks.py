"""What every schedule refuses."""

import math
from typing import Protocol


class _Budget(Protocol):
    @property
    def seed_lr(self) -> float: ...
    @property
    def total_steps(self) -> int: ...


def check_budget(schedule: _Budget) -> None:
    """ValueError unless the LR is positive and finite and the phases fit into the budget."""
    if not (math.isfinite(schedule.seed_lr) and schedule.seed_lr > 0):
        raise ValueError(f"seed_lr must be positive and finite, got {schedule.seed_lr}")
    if schedule.total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {schedule.total_steps}")
    warmup = getattr(schedule, "warmup_steps", 0)
    explore = getattr(schedule, "explore_steps", 0)
    if warmup < 0 or explore < 0 or warmup + explore > schedule.total_steps:
        raise ValueError(
            f"warmup_steps + explore_steps must lie in 0..total_steps = {schedule.total_steps}, "
            f"got {warmup} + {explore}"
        )
