"""What the training loop trains: a single model, or the replicas of a fused run."""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from knee_tune.config.study import TrunkFile
from knee_tune.plans.plan import Placement
from knee_tune.tasks.base import Split, Task
from knee_tune.workers.group import Group


class Finished(NamedTuple):
    """The final metrics and weights of a replica."""

    metrics: Mapping[str, float]
    """Of the kept weights, with the dear ones."""
    weights: Path


class Learner(Protocol):
    """The models that a run trains, named by their place in the plan; a single model is 0.

    Every method is called on every rank at the same step and answers the same on every rank.
    """

    mesh: tuple[int, ...]
    """Shape of the mesh that the model is sharded over; empty: every rank has all of it."""

    @property
    def first_steps(self) -> Mapping[int, int]:
        """The step at which each left a replica that was trained for both; 0 if it never did."""
        ...

    def update(self, step: int) -> None:
        """Update every replica that still trains once, as step ``step`` (from 1)."""
        ...

    def lost(self, *, thorough: bool = False) -> list[int]:
        """Replicas whose training loss or gradient is not finite; ``thorough``: or weights."""
        ...

    def measure(self, step: int) -> dict[int, dict[str, float]]:
        """Measure of each: validation metrics, mean training loss since the last call, and LR."""
        ...

    def keep(self, replicas: Iterable[int], *, mean_of: int = 1) -> None:
        """Keep the weights that these have now; or the mean of those of so many last calls."""
        ...

    def leave(self, replicas: Iterable[int]) -> None:
        """Train these no more; the others do not notice."""
        ...

    def finish(self) -> dict[int, Finished]:
        """Measure the kept weights of each that still trains, and write them to their files."""
        ...

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on besides its number.

        Whole on rank 0 alone; of a sharded model every rank gives what it has.
        """
        ...

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """Take over what :meth:`state` gave, and the kept weights of then."""
        ...

    def go_on_from(self, file: TrunkFile) -> None:
        """Take over a trunk that was trained elsewhere; UserError if that cannot be."""
        ...

    def kept_weights(self) -> Path | None:
        """The file with the kept weights, if they are no part of the state; rank 0's counts."""
        ...


# A task's metrics, named after their split, and which of them are no numbers to go by.

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
