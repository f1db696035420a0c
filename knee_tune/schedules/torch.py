"""The schedules as drop-in torch LR schedulers.

::

    optimizer = SGD(model.parameters(), lr=0.1)        # the seed LR of every parameter group
    scheduler = KneeLR(optimizer, total_steps=1000, explore_steps=500)
    for batch in batches:
        ...
        optimizer.step()
        scheduler.step()                               # after every update, not every epoch
"""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from knee_tune.schedules.decays import DEFAULT_POWER, Decay
from knee_tune.schedules.schedule import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Knee,
    Linear,
    OneCycle,
    Schedule,
    StepDecay,
    warmup_steps_of,
)


class ScheduleLR(LRScheduler):
    """Any schedule of this package as a torch scheduler.

    ``schedule(seed_lr=...)`` makes the schedule of one parameter group; its seed LR is the LR that
    the group had when the scheduler first saw it. A group whose LR is 0 stays at 0. Groups that are
    added later are seen at the optimizer's next step. ``last_epoch`` counts as torch's schedulers
    do: the updates done so far, minus one. Beyond the budget the last LR stays.

    The schedule is never part of the state: ``load_state_dict`` restores the position alone, so a
    branch that loads its trunk's state keeps its own knee, and so do the optimizer's LRs,
    whichever of the two is loaded first. A copy of optimizer and scheduler made together
    (``copy.deepcopy((optimizer, scheduler))``) is a pair of its own.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Callable[..., Schedule], last_epoch: int = -1
    ) -> None:
        self._schedule = schedule
        self._schedules: list[Schedule | None] = []  # of every group seen so far; None: frozen
        super().__init__(optimizer, last_epoch)
        _follow(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be the copy: the optimizer's own copy has lost every hook.

        And torch's note of whether it has stepped, which torch asks for at the second step alone.
        """
        self.__dict__.update(state | {"_step_count": max(2, state["_step_count"])})
        _follow(self)

    def get_lr(self) -> list[float | Tensor]:
        """The LR of the next update, per parameter group."""
        self._see_groups()
        step = self.last_epoch + 1
        return [
            0.0 if schedule is None else schedule.lr(min(step, schedule.total_steps))
            for schedule in self._schedules
        ]

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule, and nothing else."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the position of ``state_dict`` (any torch scheduler's) and write its LRs."""
        self.last_epoch = state_dict["last_epoch"]
        self._write_lrs()

    def _see_groups(self) -> None:
        """Read what each new group asks for, once: loading a state replaces the groups' settings.

        ``initial_lr`` is where torch's schedulers note a group's LR before they write it.
        """
        for group in self.optimizer.param_groups[len(self._schedules) :]:
            seed_lr = float(group.setdefault("initial_lr", _value(group["lr"])))
            if len(self._schedules) == len(self.base_lrs):
                self.base_lrs.append(seed_lr)
            self._schedules.append(self._schedule_of(group, seed_lr) if seed_lr else None)

    def _schedule_of(self, group: dict[str, Any], seed_lr: float) -> Schedule:
        return self._schedule(seed_lr=seed_lr)

    def _write_lrs(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = self.get_lr()

    def _write_new(self) -> None:
        """Give groups that were added since the last step their LRs."""
        if len(self._schedules) < len(self.optimizer.param_groups):
            self._write_lrs()


def _value(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _follow(scheduler: ScheduleLR) -> None:
    """Put the LRs right whenever the optimizer has others: after loading, and for new groups.

    A scheduler that was dropped must not write any more.
    """
    reference = weakref.ref(scheduler)

    def rewrite(_: Optimizer) -> None:
        if (alive := reference()) is not None:
            alive._write_lrs()

    def before_step(*_: Any) -> None:
        if (alive := reference()) is not None:
            alive._write_new()

    scheduler.optimizer.register_load_state_dict_post_hook(rewrite)
    scheduler.optimizer.register_step_pre_hook(before_step)


class KneeLR(ScheduleLR):
    """``Knee`` as a torch scheduler; ``step()`` after every update.

    Explore and warmup are given in steps or as fractions of ``total_steps``, which become the
    nearest step (any warmup is one at least); where both fractions do not fit, the explore phase
    gives way. ``decay``, ``final`` and ``decay_power`` as in ``Knee``.

    A parameter group with a ``decay_scale`` has a decay of so many times the steps, which ends with
    the others': ``{"params": matrices, "lr": 0.02, "decay_scale": 0.5}`` decays over the last half
    of the others' decay (see ``Knee.with_decay_scale``). A trunk then ends at the earliest knee,
    ``knee_step``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        explore_steps: int | None = None,
        explore_fraction: float | None = None,
        warmup_steps: int | None = None,
        warmup_fraction: float | None = None,
        decay: Decay = "linear",
        final: float = 0.0,
        decay_power: float = DEFAULT_POWER,
        last_epoch: int = -1,
    ) -> None:
        if (explore_steps is None) == (explore_fraction is None):
            raise ValueError("give either explore_steps or explore_fraction")
        if warmup_steps is not None and warmup_fraction is not None:
            raise ValueError("give either warmup_steps or warmup_fraction")
        for name, share in (
            ("explore_fraction", explore_fraction),
            ("warmup_fraction", warmup_fraction),
        ):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {share}")
        warmup = warmup_steps or warmup_steps_of(warmup_fraction or 0.0, total_steps)
        if explore_steps is None:
            explored = round((explore_fraction or 0.0) * total_steps)
            explore_steps = min(explored, total_steps - warmup)
        schedule = partial(
            Knee,
            total_steps=total_steps,
            explore_steps=explore_steps,
            warmup_steps=warmup,
            decay=decay,
            final=final,
            decay_power=decay_power,
        )
        super().__init__(optimizer, schedule, last_epoch)

    @property
    def knee_step(self) -> int:
        """The last step before any parameter group decays; without one that learns, the budget."""
        knees = [each.knee_step for each in self._schedules if isinstance(each, Knee)]
        return min(knees, default=self._schedule(seed_lr=1.0).total_steps)

    def _schedule_of(self, group: dict[str, Any], seed_lr: float) -> Schedule:
        knee = self._schedule(seed_lr=seed_lr)
        assert isinstance(knee, Knee), "__init__ has made it so"
        return knee.with_decay_scale(float(group.get("decay_scale", 1.0)))


class StepDecayLR(ScheduleLR):
    """``StepDecay`` as a torch scheduler; ``step()`` after every update."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        boundaries: tuple[int, ...],
        factor: float = 0.1,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        schedule = partial(
            StepDecay,
            total_steps=total_steps,
            boundaries=boundaries,
            factor=factor,
            warmup_steps=warmup_steps,
        )
        super().__init__(optimizer, schedule, last_epoch)


class _WarmupOnly(ScheduleLR):
    """A schedule that has nothing to set but its budget and its warmup."""

    _type: Callable[..., Schedule]

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        schedule = partial(self._type, total_steps=total_steps, warmup_steps=warmup_steps)
        super().__init__(optimizer, schedule, last_epoch)


class LinearLR(_WarmupOnly):
    """``Linear`` as a torch scheduler; ``step()`` after every update."""

    _type = Linear


class CosineLR(_WarmupOnly):
    """``Cosine`` as a torch scheduler; ``step()`` after every update."""

    _type = Cosine


class InverseSquareRootLR(_WarmupOnly):
    """``InverseSquareRoot`` as a torch scheduler; ``step()`` after every update."""

    _type = InverseSquareRoot


class ConstantLR(_WarmupOnly):
    """``Constant`` as a torch scheduler; ``step()`` after every update."""

    _type = Constant


class OneCycleLR(ScheduleLR):
    """``OneCycle`` as a torch scheduler; ``step()`` after every update."""

    def __init__(self, optimizer: Optimizer, *, total_steps: int, last_epoch: int = -1) -> None:
        super().__init__(optimizer, partial(OneCycle, total_steps=total_steps), last_epoch)
