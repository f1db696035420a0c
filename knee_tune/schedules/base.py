"""What every schedule is and what it refuses."""

import math
from typing import Protocol


class Schedule(Protocol):
    """An LR for every step of a budget. Seed LR in the optimizer's units, budget in steps."""

    @property
    def seed_lr(self) -> float:
        """The LR that the schedule's shape is scaled by."""
        ...

    @property
    def total_steps(self) -> int:
        """The budget."""
        ...

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps; undefined outside."""
        ...


def learning_rates(schedule: Schedule) -> list[float]:
    """The LR of every step, in order: what two schedules are compared by."""
    return [schedule.lr(step) for step in range(1, schedule.total_steps + 1)]


def check_budget(schedule: Schedule) -> None:
    """ValueError unless the LR is positive and finite and the phases fit into the budget."""
    if not (math.isfinite(schedule.seed_lr) and schedule.seed_lr > 0):
        raise ValueError(f"seed_lr must be positive and finite, got {schedule.seed_lr}")
    if schedule.total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {schedule.total_steps}")
    phases = {
        name: getattr(schedule, name)
        for name in ("warmup_steps", "explore_steps")
        if hasattr(schedule, name)
    }
    if any(steps < 0 for steps in phases.values()):
        raise ValueError(f"steps must not be negative, got {_listed(phases)}")
    if sum(phases.values()) > schedule.total_steps:
        raise ValueError(
            f"{' + '.join(phases)} must not exceed total_steps = {schedule.total_steps}, "
            f"got {_listed(phases)}"
        )


def _listed(phases: dict[str, int]) -> str:
    return ", ".join(f"{name} = {steps}" for name, steps in phases.items())
