"""The Knee schedule, the schedules that the paper compares it with, and the LR range test's.

Each is a frozen dataclass whose ``lr`` is a pure function of the step.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

from knee_tune.schedules.decays import (
    DECAYS,
    DEFAULT_POWER,
    Decay,
    fraction_at,
    progress_at,
)

LONGEST_RUN = 10**12
"""Steps of a run that can be asked for."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Budgeted:
    """A seed LR and a budget; ValueError unless they make sense and the phases fit."""

    seed_lr: float
    total_steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seed_lr) and self.seed_lr > 0):
            raise ValueError(f"seed_lr must be positive and finite, got {self.seed_lr}")
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {self.total_steps}")
        phases = {
            name: getattr(self, name)
            for name in ("warmup_steps", "explore_steps")
            if hasattr(self, name)
        }
        listed = ", ".join(f"{name} = {steps}" for name, steps in phases.items())
        if any(steps < 0 for steps in phases.values()):
            raise ValueError(f"steps must not be negative, got {listed}")
        if sum(phases.values()) > self.total_steps:
            raise ValueError(
                f"{' + '.join(phases)} must not exceed total_steps = {self.total_steps}, "
                f"got {listed}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _WarmedUp(_Budgeted, ABC):
    """A schedule with an optional linear warmup, from ``seed_lr / warmup_steps`` to ``seed_lr``."""

    warmup_steps: int = 0

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        if step <= self.warmup_steps:
            return self.seed_lr * step / self.warmup_steps
        return self._after_warmup(step)

    @abstractmethod
    def _after_warmup(self, step: int) -> float:
        """LR of an update after the warmup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knee(_WarmedUp):
    """Linear warmup, explore at ``seed_lr``, then a decay to ``final * seed_lr`` at the last step.

    The paper's decay is linear, to zero (Iyer et al., JMLR 2023, section 4). Without explore steps
    nothing but the decay follows the warmup; without decay steps (warmup + explore = total) it
    never leaves ``seed_lr``. ``decay`` is one of :data:`~knee_tune.schedules.DECAYS`, and
    ``decay_power`` is the exponent of ``power``, where it must be positive; no other shape has one.
    """

    explore_steps: int
    decay: Decay = "linear"
    final: float = 0.0
    decay_power: float = DEFAULT_POWER
    name: Literal["knee"] = "knee"

    def __post_init__(self) -> None:
        _WarmedUp.__post_init__(self)
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")
        if not 0 <= self.final < 1:
            raise ValueError(f"final must be at least 0 and below 1, got {self.final}")
        if not (math.isfinite(self.decay_power) and self.decay_power > 0):
            raise ValueError(f"decay_power must be positive and finite, got {self.decay_power}")
        if self.decay != "power" and self.decay_power != DEFAULT_POWER:
            raise ValueError(f"decay_power: only decay 'power' has one, this is {self.decay!r}")

    @property
    def knee_step(self) -> int:
        """The last step before the decay: warmup and explore together."""
        return self.warmup_steps + self.explore_steps

    def decay_progress_at(self, lr: float) -> float | None:
        """The share of the decay's steps (0..1) after which the LR is ``lr``; None: it never is."""
        fraction = lr / self.seed_lr
        return progress_at(fraction, decay=self.decay, final=self.final, power=self.decay_power)

    def with_decay_scale(self, scale: float) -> "Knee":
        """The same schedule with a decay of ``scale`` times the steps, to the nearest step.

        The explore phase gives way, or takes what is left; the warmup never does. ValueError unless
        ``scale`` is positive and finite.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"decay_scale must be positive and finite, got {scale}")
        decay_steps = round(scale * (self.total_steps - self.knee_step))
        explore_steps = max(0, self.total_steps - self.warmup_steps - decay_steps)
        return replace(self, explore_steps=explore_steps)

    def _after_warmup(self, step: int) -> float:
        knee = self.knee_step
        if step <= knee:
            return self.seed_lr
        progress = min(1.0, (step - knee) / (self.total_steps - knee))
        return self.seed_lr * fraction_at(
            progress, decay=self.decay, final=self.final, power=self.decay_power
        )


def fitted_knee(
    *,
    seed_lr: float,
    total_steps: int,
    explore_steps: int,
    warmup_steps: int = 0,
    decay: Decay = "linear",
    final: float = 0.0,
    decay_power: float = DEFAULT_POWER,
) -> Knee:
    """The Knee schedule with these phases, as far as the budget has room for them.

    Warmup is counted apart; where both do not fit, the explore phase is what gives way.
    """
    warmup = min(warmup_steps, total_steps)
    return Knee(
        seed_lr=seed_lr,
        total_steps=total_steps,
        warmup_steps=warmup,
        explore_steps=min(explore_steps, total_steps - warmup),
        decay=decay,
        final=final,
        decay_power=decay_power if decay == "power" else DEFAULT_POWER,
    )


def warmup_steps_of(share: float, total_steps: int) -> int:
    """The warmup of a ``share`` of the budget, in steps: one at least, unless the share is 0."""
    return max(1, round(share * total_steps)) if share else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Phased(_Budgeted):
    """Knees behind each other, the phases of one budget: each warms up, explores and decays.

    BERT is trained so, on short texts first and on long ones then (Devlin et al., 2018). What runs
    share, and where branches leave, is warmup and explore of the first phase.
    """

    phases: tuple[Knee, ...]
    name: Literal["phased"] = "phased"

    def __post_init__(self) -> None:
        if sum(each.total_steps for each in self.phases) != self.total_steps:
            raise ValueError(f"phases must take total_steps = {self.total_steps} together")
        _Budgeted.__post_init__(self)

    @property
    def ends(self) -> tuple[int, ...]:
        """The last step of every phase."""
        return tuple(accumulate(each.total_steps for each in self.phases))

    @property
    def warmup_steps(self) -> int:
        """Those of the first phase."""
        return self.phases[0].warmup_steps

    @property
    def knee_step(self) -> int:
        """The last step before the first decay."""
        return self.phases[0].knee_step

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        phase = phase_at(self.ends, step)
        return self.phases[phase].lr(step - (0, *self.ends)[phase])

    def with_decay_scale(self, scale: float) -> "Phased":
        """The same schedule with such a decay in every phase (see :class:`Knee`)."""
        return replace(self, phases=tuple(each.with_decay_scale(scale) for each in self.phases))


class Phase(Protocol):
    """What a recipe says of a phase."""

    @property
    def share(self) -> float:
        """Of the budget."""
        ...

    @property
    def lr_factor(self) -> float:
        """Its explore LR over the seed LR."""
        ...

    @property
    def warmup(self) -> float:
        """Of its own steps."""
        ...


def fitted_schedule(
    *,
    seed_lr: float,
    total_steps: int,
    explore_fraction: float,
    warmup_steps: int = 0,
    phases: Sequence[Phase] = (),
    decay: Decay = "linear",
    final: float = 0.0,
    decay_power: float = DEFAULT_POWER,
) -> Knee | Phased:
    """The schedule of a point of a search: a Knee that explores for ``explore_fraction`` of it.

    With ``phases`` one such Knee for each, with a warmup of its own in place of ``warmup_steps``.
    ValueError if a phase comes to no step.
    """
    if not phases:
        return fitted_knee(
            seed_lr=seed_lr,
            total_steps=total_steps,
            explore_steps=round(explore_fraction * total_steps),
            warmup_steps=warmup_steps,
            decay=decay,
            final=final,
            decay_power=decay_power,
        )
    ends = [round(total_steps * share) for share in accumulate(each.share for each in phases)]
    ends[-1] = total_steps
    return Phased(
        seed_lr=seed_lr,
        total_steps=total_steps,
        phases=tuple(
            fitted_knee(
                seed_lr=seed_lr * each.lr_factor,
                total_steps=steps,
                explore_steps=round(explore_fraction * steps),
                warmup_steps=warmup_steps_of(each.warmup, steps),
                decay=decay,
                final=final,
                decay_power=decay_power,
            )
            for each, steps in zip(phases, (b - a for a, b in pairwise((0, *ends))), strict=True)
        ),
    )


def phases_of(schedule: Knee | Phased) -> tuple[Knee, ...]:
    """The phases of a schedule; of a Knee itself alone."""
    return schedule.phases if isinstance(schedule, Phased) else (schedule,)


def phase_at(ends: Sequence[int], step: int) -> int:
    """The phase (from 0) of ``step``, by the last step of each; 0 if there are none."""
    return min(bisect_left(ends, step), max(0, len(ends) - 1))


_USUAL = {"decay": "linear", "final": 0.0, "decay_power": DEFAULT_POWER}


def as_stored(schedule: Schedule) -> dict[str, Any]:
    """The fields of a schedule as studies and runs keep them: without what is usual of a decay.

    Schedules that were kept before decays had shapes are linear to zero, and read the same.
    """
    fields = schedule.__dataclass_fields__  # type: ignore[attr-defined]  # of every one of them
    values = {name: getattr(schedule, name) for name in fields}
    if isinstance(schedule, Phased):
        values["phases"] = [as_stored(each) for each in schedule.phases]
    return {name: value for name, value in values.items() if _USUAL.get(name, ...) != value}


# The schedules that the paper compares Knee with (section 5, appendix A).


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(_WarmedUp):
    """The same LR at every step."""

    name: Literal["constant"] = "constant"

    @property
    def knee_step(self) -> int:
        """It explores to the end."""
        return self.total_steps

    def _after_warmup(self, step: int) -> float:
        return self.seed_lr


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(_WarmedUp):
    """Linear decay to zero at the last step."""

    name: Literal["linear"] = "linear"

    def _after_warmup(self, step: int) -> float:
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return max(0.0, self.seed_lr * (1 - progress))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine(_WarmedUp):
    """Half a cosine down to zero at the last step (Loshchilov and Hutter, 2016)."""

    name: Literal["cosine"] = "cosine"

    def _after_warmup(self, step: int) -> float:
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.seed_lr * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDecay(_WarmedUp):
    """The hand-tuned step schedule: the LR is multiplied by ``factor`` after every boundary.

    ``boundaries`` are the last steps at the LR before them, ascending. "0.1, 0.01 and 0.001 for
    100, 50 and 50 epochs" (section 5.3.2) is ``boundaries=(100 * n, 150 * n)`` at n steps an epoch.
    """

    boundaries: tuple[int, ...]
    factor: float = 0.1
    name: Literal["step"] = "step"

    def __post_init__(self) -> None:
        _WarmedUp.__post_init__(self)
        if any(left >= right for left, right in pairwise((0, *self.boundaries))):
            raise ValueError(f"boundaries must be positive and ascend, got {self.boundaries}")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {self.factor}")

    @property
    def knee_step(self) -> int:
        """The last step before the first decay: warmup and explore together."""
        return min((*self.boundaries, self.total_steps))

    def _after_warmup(self, step: int) -> float:
        passed = sum(step > boundary for boundary in self.boundaries)
        return self.seed_lr * self.factor**passed


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle(_Budgeted):
    """Smith's one-cycle policy as the paper's appendix A describes it.

    Linear from ``seed_lr / 10`` up to ``seed_lr`` over 45 % of the budget, linear back down over
    the next 45 %, then a tenth of the starting LR for the rest. ``seed_lr`` is the policy's
    maximum LR (the paper: a tenth of the LR range test's minimum). It has its own warmup. The
    implementation that the appendix names anneals in the last tenth, and cycles momentum too.
    """

    name: Literal["one_cycle"] = "one_cycle"

    def lr(self, step: int) -> float:
        """LR of update ``step`` = 1..total_steps."""
        low = self.seed_lr / 10
        if 10 * step > 9 * self.total_steps:  # in integers: 0.45 is no binary fraction
            return low / 10
        ramps = 20 * step / (9 * self.total_steps)  # 1 at the top, 2 back at the bottom
        return low + (self.seed_lr - low) * (ramps if ramps <= 1 else 2 - ramps)


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseSquareRoot(_WarmedUp):
    """Linear warmup to ``seed_lr``, then LR ~ 1/sqrt(step) (Vaswani et al., 2017).

    Without warmup the first step has ``seed_lr`` and the decay starts at once.
    """

    name: Literal["inverse_sqrt"] = "inverse_sqrt"

    def _after_warmup(self, step: int) -> float:
        return self.seed_lr * math.sqrt(max(1, self.warmup_steps) / step)


@dataclass(frozen=True, kw_only=True, slots=True)
class LRRange(_Budgeted):
    """Smith's LR range test: the LR grows by one factor a step, from ``seed_lr`` to ``high``."""

    high: float
    name: Literal["lr_range"] = "lr_range"

    def __post_init__(self) -> None:
        _Budgeted.__post_init__(self)
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
