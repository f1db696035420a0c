"""A task's metrics, named after their split, and which of them are no numbers to go by."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import nn

from knee_tune.distributed.group import Group
from knee_tune.planning.plan import Placement
from knee_tune.tasks.base import Split, Task

V = TypeVar("V")


def evaluate(
    task: Task[Any],
    model: nn.Module,
    group: Group,
    *,
    placement: Placement,
    split: Split,
    final: bool,
) -> dict[str, float]:
    """The task's metrics on ``split``, each named after it: ``valid_ppl``, ``test_bleu``.

    In the arithmetic of training: what trained under bf16 autocast is also measured under it.
    """
    model.eval()
    with torch.no_grad(), autocast(placement):
        metrics = task.evaluate(model, group, split=split, final=final)
    return named(split, metrics)


def named(split: Split, metrics: Mapping[str, V]) -> dict[str, V]:
    """Metrics under names that say which split they are from."""
    return {f"{split}_{name}": value for name, value in metrics.items()}


def non_finite(metrics: Mapping[str, float]) -> str:
    """Names of the metrics that are no numbers to go by (and that JSON cannot hold)."""
    return ", ".join(name for name, value in metrics.items() if not math.isfinite(value))


def autocast(placement: Placement) -> AbstractContextManager[None]:
    """The arithmetic that losses and metrics are computed in."""
    if not placement.amp:
        return nullcontext()
    return torch.autocast(placement.device, dtype=torch.bfloat16)


def means(measured: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over the replicas."""
    first = next(iter(measured.values()))
    if len(measured) == 1:
        return dict(first)
    return {name: fmean(metrics[name] for metrics in measured.values()) for name in first}


def columns(
    measured: Mapping[int, Mapping[str, float]], replicas: int
) -> dict[str, tuple[float | None, ...]]:
    """Every metric of all ``replicas``, None for those that were not measured."""
    if not replicas:
        return {}
    names = next(iter(measured.values()))
    return {
        name: tuple(measured[r][name] if r in measured else None for r in range(replicas))
        for name in names
    }
