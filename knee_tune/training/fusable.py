"""Whether a task's models can train as replicas of one batched model, and if not, why."""

from typing import Any

import torch
from torch import nn

from knee_tune.distributed.group import Group
from knee_tune.errors import first_line
from knee_tune.planning.plan import Placement
from knee_tune.tasks.base import FusableTask, Task
from knee_tune.training.pack import Pack, fresh_rows, stack_batches


def why_unfusable(task: Task[Any]) -> str:
    """The reason in a few words; empty if it can be fused."""
    if not isinstance(task, FusableTask):
        return "the task does not declare that its models can be batched"
    if type(task).evaluate is not FusableTask.evaluate:
        return "the task evaluates its models in a way of its own"
    if reason := _reason_in(task.build_model()):
        return reason
    try:
        _try(task)
    except Exception as error:  # whatever torch.func says to a model that it cannot batch
        return first_line(error)
    return ""


def _reason_in(model: nn.Module) -> str:
    """What would come out otherwise than one by one."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"{kind} ({name}) would draw other masks than one by one"
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            return f"{kind} ({name}) keeps running statistics"
    buffers = [name for name, _ in model.named_buffers()]
    return f"the model has buffers ({', '.join(buffers)})" if buffers else ""


def _try(task: FusableTask[Any]) -> None:
    """Train two rows one step, and evaluate them."""
    group = Group()
    rows = fresh_rows(task, [task.seed, task.seed], group.device)
    pack = Pack(task, rows, Placement())
    micro_batches = next(iter(task.train_batches(0, group)))
    twice = [stack_batches([batch, batch]) for batch in micro_batches]
    pack.update(twice, torch.zeros(2))
    pack.score([next(iter(task.eval_batches("valid", group)))])
