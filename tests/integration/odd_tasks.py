"""Tasks that are difficult in one way each, and the product's job with them registered."""

import math
import time
from collections.abc import Mapping

from torch import nn

from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel, Done
from knee_tune.planning.plan import Plan
from knee_tune.tasks.base import Split
from knee_tune.tasks.digits.task import CLASSES, SIDE, DigitsTask
from knee_tune.tasks.registry import TASKS, TaskEntry
from knee_tune.training import worker


def _entry(task: str) -> TaskEntry:
    return TaskEntry(recipe="knee_tune.tasks.digits.recipe:DigitsRecipe", task=f"{__name__}:{task}")


ENTRIES = {
    "batchnorm": _entry("BatchNormTask"),
    "slow": _entry("SlowTask"),
    "lost": _entry("LostTask"),
}


class BatchNormTask(DigitsTask):
    """Digits with a network that normalises its batches."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(SIDE * SIDE, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, CLASSES)
        )


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


def run_job(plan: Plan, group: Group, channel: Channel) -> Done:
    """What every rank does."""
    TASKS.update(ENTRIES)  # type: ignore[attr-defined]
    return worker.run_job(plan, group, channel)
