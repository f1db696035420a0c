"""The schedules that the paper compares Knee with (section 5, appendix A)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

# What every schedule is and what it refuses.


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """The same LR at every step, after an optional linear warmup."""

    seed_lr: float
    total_steps: int
    warmup_steps: int = 0
    name: Literal["constant"] = "constant"

    def __post_init__(self) -> None:
        check_budget(self)

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        if step <= self.warmup_steps:
            return self.seed_lr * step / self.warmup_steps
        return self.seed_lr

    @property
    def knee_step(self) -> int:
        """It explores to the end."""
        return self.total_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """Linear decay to zero, after an optional linear warmup."""

    seed_lr: float
    total_steps: int
    warmup_steps: int = 0
    name: Literal["linear"] = "linear"

    def __post_init__(self) -> None:
        check_budget(self)

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps; zero at the last."""
        if step <= self.warmup_steps:
            return self.seed_lr * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return max(0.0, self.seed_lr * (1 - progress))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine:
    """Half a cosine down to zero (Loshchilov and Hutter, 2016), after an optional warmup."""

    seed_lr: float
    total_steps: int
    warmup_steps: int = 0
    name: Literal["cosine"] = "cosine"

    def __post_init__(self) -> None:
        check_budget(self)

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps; zero at the last."""
        if step <= self.warmup_steps:
            return self.seed_lr * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.seed_lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDecay:
    """The hand-tuned step schedule: the LR is multiplied by ``factor`` after every boundary.

    ``boundaries`` are the last steps at the LR before them, ascending. "0.1, 0.01 and 0.001 for
    100, 50 and 50 epochs" (section 5.3.2) is ``boundaries=(100 * n, 150 * n)`` at n steps an epoch.
    """

    seed_lr: float
    total_steps: int
    boundaries: tuple[int, ...]
    factor: float = 0.1
    warmup_steps: int = 0
    name: Literal["step"] = "step"

    def __post_init__(self) -> None:
        check_budget(self)
        if any(left >= right for left, right in pairwise((0, *self.boundaries))):
            raise ValueError(f"boundaries must be positive and ascend, got {self.boundaries}")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {self.factor}")

    @property
    def knee_step(self) -> int:
        """The last step before the first decay: warmup and explore together."""
        return min((*self.boundaries, self.total_steps))

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        if step <= self.warmup_steps:
            return self.seed_lr * step / self.warmup_steps
        passed = sum(step > boundary for boundary in self.boundaries)
        return self.seed_lr * self.factor**passed


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle:
    """Smith's one-cycle policy as the paper's appendix A describes it.

    Linear from ``seed_lr / 10`` up to ``seed_lr`` over 45 % of the budget, linear back down over
    the next 45 %, then a tenth of the starting LR for the rest. ``seed_lr`` is the policy's
    maximum LR (the paper: a tenth of the LR range test's minimum). It has its own warmup. The
    implementation that the appendix names anneals in the last tenth, and cycles momentum too.
    """

    seed_lr: float
    total_steps: int
    name: Literal["one_cycle"] = "one_cycle"

    def __post_init__(self) -> None:
        check_budget(self)

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        low = self.seed_lr / 10
        if 10 * step > 9 * self.total_steps:  # in integers: 0.45 is no binary fraction
            return low / 10
        ramps = 20 * step / (9 * self.total_steps)  # 1 at the top, 2 back at the bottom
        return low + (self.seed_lr - low) * (ramps if ramps <= 1 else 2 - ramps)


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseSquareRoot:
    """Linear warmup to ``seed_lr``, then LR ~ 1/sqrt(step) (Vaswani et al., 2017).

    Without warmup the first step has ``seed_lr`` and the decay starts at once.
    """

    seed_lr: float
    total_steps: int
    warmup_steps: int = 0
    name: Literal["inverse_sqrt"] = "inverse_sqrt"

    def __post_init__(self) -> None:
        check_budget(self)

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        warmup = max(1, self.warmup_steps)
        if step <= warmup:
            return self.seed_lr * step / warmup
        return self.seed_lr * math.sqrt(warmup / step)


# The Knee schedule (Iyer et al., JMLR 2023, section 4).


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


# The schedule of Smith's LR range test (appendix A).


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
