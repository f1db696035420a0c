"""A task's metrics, named after their split, and which of them are no numbers to go by."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from knee_tune.distributed.group import Group
from knee_tune.tasks.base import Split, Task


def evaluate(
    task: Task[Any], model: nn.Module, group: Group, *, split: Split, final: bool
) -> dict[str, float]:
    """The task's metrics on ``split``, each named after it: ``valid_ppl``, ``test_bleu``."""
    model.eval()
    with torch.no_grad():
        metrics = task.evaluate(model, group, split=split, final=final)
    return {f"{split}_{name}": value for name, value in metrics.items()}


def non_finite(metrics: Mapping[str, float]) -> str:
    """Names of the metrics that are no numbers to go by (and that JSON cannot hold)."""
    return ", ".join(name for name, value in metrics.items() if not math.isfinite(value))
