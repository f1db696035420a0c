"""Tasks that are difficult in one way each, and the product's job with them registered."""

import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

from knee_tune import jobs
from knee_tune.plans.plan import Plan
from knee_tune.tasks.base import Examples, Split
from knee_tune.tasks.registry import TASKS, TaskEntry
from knee_tune.tasks.tabular.task import SIDE, DigitsTask
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Done

KILL_AT = "kill-at"
"""A file in the data folder of the mortal task."""


def _entry(task: str) -> TaskEntry:
    return TaskEntry(
        recipe="knee_tune.tasks.tabular.recipe:DigitsRecipe", task=f"{__name__}:{task}"
    )


ENTRIES = {
    "batchnorm": _entry("BatchNormTask"),
    "slow": _entry("SlowTask"),
    "lost": _entry("LostTask"),
    "worsening": _entry("WorseningTask"),
    "breaking": _entry("BreakingTask"),
    "mortal": _entry("MortalTask"),
    "apart": _entry("ApartTask"),
}


class BatchNormTask(DigitsTask):
    """Digits with a network that normalises its batches, and drops some of them."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(SIDE * SIDE, 24),
            nn.BatchNorm1d(24),
            nn.ReLU(),
            nn.Dropout(self.recipe.model.dropout),
            nn.Linear(24, self.classes),
        )


class ApartTask(BatchNormTask):
    """The same, whose first layer decays over half of the others' decay, at a tenth of the LR."""

    def build_optimizer(self, model: nn.Module) -> optim.Optimizer:
        first, *others = model.parameters()
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": [first], "lr_scale": 0.1, "decay_scale": 0.5},
        ]
        return optim.SGD(groups, lr=0.1, momentum=0.9)


class SlowTask(DigitsTask):
    """Digits with a final evaluation of 5 seconds."""

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        for _ in range(50 if final else 0):
            group.alive()
            time.sleep(0.1)
        return super().evaluate(model, group, split=split, final=final)


class LostTask(DigitsTask):
    """Digits whose final loss is infinite."""

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        metrics = super().evaluate(model, group, split=split, final=final)
        return {**metrics, "loss": math.inf} if final else metrics


class WorseningTask(BatchNormTask):
    """Digits whose accuracy falls with every step: the first weights are the best."""

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        metrics = super().evaluate(model, group, split=split, final=final)
        return {**metrics, "accuracy": -_steps_seen(model)}


class BreakingTask(BatchNormTask):
    """Digits whose loss is infinite from step 13 on."""

    def loss(self, model: nn.Module, batch: Examples) -> tuple[Tensor, float]:
        loss, count = super().loss(model, batch)
        return (loss + math.inf if _steps_seen(model) >= 13 else loss), count


class MortalTask(BatchNormTask):
    """Digits whose last rank is killed, once, at the step that a file names."""

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Examples]]:
        order = self.data_dir / KILL_AT
        for step, batches in enumerate(super().train_batches(start_step, group), start_step + 1):
            last = group.rank == group.world_size - 1
            if last and order.exists() and int(order.read_text()) == step:
                order.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            yield batches


def _steps_seen(model: nn.Module) -> float:
    """What the BatchNorm layer counts: the forward passes in training."""
    seen = next(value for name, value in model.named_buffers() if name.endswith("batches_tracked"))
    return float(seen)


def run_job(plan: Plan, group: Group, channel: Channel) -> Done:
    """What every rank does."""
    TASKS.update(ENTRIES)  # type: ignore[attr-defined]
    return jobs.run_job(plan, group, channel)
