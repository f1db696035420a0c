"""Measure a minimum of a task's training loss, as a plan asks."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from knee_tune.analysis.fisher import FisherMatrix
from knee_tune.analysis.lanczos import largest_eigenvalue
from knee_tune.analysis.sharpness import sharpness
from knee_tune.analysis.training_loss import TrainingLoss, full_precision
from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel
from knee_tune.errors import UserError
from knee_tune.planning.plan import AnalysePlan
from knee_tune.specs.analyses import Fisher, Sharpness
from knee_tune.tasks.base import Classifier, Task


def analyse(
    task: Task[Any], plan: AnalysePlan, model: nn.Module, group: Group, channel: Channel
) -> dict[str, float]:
    """``sharpness`` and the ``loss`` it starts from, or ``fisher``; the same on every rank.

    The channel is told the number of looks at the whole sample so far. UserError if the task is no
    :class:`Classifier`.
    """
    if not isinstance(task, Classifier):
        raise UserError(
            f"task {plan.task}: {plan.analysis.name} asks how sure the model is of classes, and "
            "this task has none; choose one that does, such as digits or cifar10"
        )
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    watched = replace(group, alive=lambda: channel.progress(looks))
    model.eval()
    batches = partial(task.train_examples, watched, limit=plan.analysis.examples)
    with full_precision():
        match plan.analysis:
            case Sharpness() as settings:
                loss = TrainingLoss(model, task.loss, batches, group=watched)

                def ascended() -> tuple[float, Tensor]:
                    look()
                    return loss()

                sharp = sharpness(ascended, loss.parameters, settings=settings)
                if sharp.stuck and group.leads:
                    channel.line("the gradient at these weights is exactly 0: nothing to ascend")
                return {"sharpness": sharp.value, "loss": sharp.loss}
            case Fisher() as settings:
                matrix = FisherMatrix(
                    model, batches, samples=settings.samples, seed=settings.seed, group=watched
                )

                def multiplied(vector: Tensor) -> Tensor:
                    look()
                    return matrix @ vector

                found = largest_eigenvalue(
                    multiplied,
                    matrix.random_vector(settings.seed),
                    iterations=settings.iterations,
                    tolerance=settings.tolerance,
                )
                if not found.sure and group.leads:
                    channel.line(
                        f"not settled after {settings.iterations} products: the largest eigenvalue "
                        "is at least what was found"
                    )
                return {"fisher": found.value}
