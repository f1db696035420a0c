"""Measure a minimum of a task's training loss, as an analysis asks."""

from functools import partial
from typing import Any

from torch import nn

from knee_tune.analysis.fisher import FisherMatrix, fisher_score
from knee_tune.analysis.sharpness import sharpness
from knee_tune.analysis.training_loss import TrainingLoss, full_precision
from knee_tune.distributed.group import Group
from knee_tune.distributed.protocol import Channel
from knee_tune.errors import UserError
from knee_tune.specs.analyses import Analysis, Fisher, Sharpness
from knee_tune.tasks.base import Task
from knee_tune.tasks.classifier import Classifier


def analyse(
    task: Task[Any], model: nn.Module, analysis: Analysis, group: Group, channel: Channel
) -> dict[str, float]:
    """``sharpness`` and the ``loss`` it starts from, or ``fisher``; the same on every rank.

    UserError if the task is no :class:`Classifier`.
    """
    if not isinstance(task, Classifier):
        raise UserError(
            f"task {type(task).__name__}: {analysis.name} needs a task that tells classes apart; "
            "choose one of those (digits, cifar10)"
        )
    model.eval()
    batches = partial(task.train_examples, group, limit=analysis.examples)
    with full_precision():
        match analysis:
            case Sharpness():
                loss = TrainingLoss(model, task.loss, batches, group=group)
                sharp = sharpness(loss, loss.parameters, settings=analysis)
                if sharp.stuck and group.leads:
                    channel.line("the gradient at these weights is exactly 0: nothing to ascend")
                return {"sharpness": sharp.value, "loss": sharp.loss}
            case Fisher():
                matrix = FisherMatrix(
                    model,
                    batches,
                    samples=analysis.samples,
                    seed=analysis.seed,
                    group=group,
                )
                score = fisher_score(matrix, settings=analysis, device=group.device)
                return {"fisher": score}
