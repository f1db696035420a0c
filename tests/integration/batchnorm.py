"""A task whose model has buffers, and the product's job with that task registered."""

from torch import nn

from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel, Done
from knee_tune.planning.plan import Plan
from knee_tune.tasks.digits.task import CLASSES, SIDE, DigitsTask
from knee_tune.tasks.registry import TASKS, TaskEntry
from knee_tune.training import worker

ENTRY = TaskEntry(
    recipe="knee_tune.tasks.digits.recipe:DigitsRecipe",
    task="tests.integration.batchnorm:BatchNormTask",
)


class BatchNormTask(DigitsTask):
    """Digits with a network that normalises its batches."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(SIDE * SIDE, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, CLASSES)
        )


def run_job(plan: Plan, group: Group, channel: Channel) -> Done:
    """What every rank does."""
    TASKS["batchnorm"] = ENTRY  # type: ignore[index]
    return worker.run_job(plan, group, channel)
