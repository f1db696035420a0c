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

from knee_tune.schedules.schedule import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Knee,
    Linear,
    OneCycle,
    Schedule,
    StepDecay,
)


class ScheduleLR(LRScheduler):
    """Any schedule of this package as a torch scheduler.

    ``schedule(seed_lr=...)`` makes the schedule of one parameter group; its seed LR is the LR the
    group had before. A group whose LR is 0 stays at 0. ``last_epoch`` counts as torch's
    schedulers do: the updates done so far, minus one. Beyond the budget the last LR stays.

    The schedule is never part of the state: ``load_state_dict`` restores the position alone, so a
    branch that loads its trunk's state keeps its own knee, and so do the optimizer's LRs,
    whichever of the two is loaded first.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Callable[..., Schedule], last_epoch: int = -1
    ) -> None:
        self._schedule = schedule
        super().__init__(optimizer, last_epoch)
        optimizer.register_load_state_dict_post_hook(_rewriter(self))

    def get_lr(self) -> list[float | Tensor]:
        """The LR of the next update, per parameter group."""
        return [self._group_lr(float(seed_lr)) for seed_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule, and nothing else."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the position of ``state_dict`` (any torch scheduler's) and write its LRs."""
        self.last_epoch = state_dict["last_epoch"]
        self._write_lrs()

    def _group_lr(self, seed_lr: float) -> float:
        if seed_lr == 0:
            return 0.0
        schedule = self._schedule(seed_lr=seed_lr)
        return schedule.lr(min(self.last_epoch + 1, schedule.total_steps))

    def _write_lrs(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = self.get_lr()


def _rewriter(scheduler: ScheduleLR) -> Callable[[Optimizer], None]:
    """A hook that puts the LRs right after an optimizer state has brought its own."""
    reference = weakref.ref(scheduler)  # a scheduler that was dropped must not write any more

    def rewrite(_: Optimizer) -> None:
        alive = reference()
        if alive is not None:
            alive._write_lrs()

    return rewrite


class KneeLR(ScheduleLR):
    """``Knee`` as a torch scheduler; ``step()`` after every update."""

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        total_steps: int,
        explore_steps: int,
        warmup_steps: int = 0,
        last_epoch: int = -1,
    ) -> None:
        schedule = partial(
            Knee, total_steps=total_steps, explore_steps=explore_steps, warmup_steps=warmup_steps
        )
        super().__init__(optimizer, schedule, last_epoch)


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
