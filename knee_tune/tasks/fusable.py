"""Tasks whose models can train as replicas of one batched model."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from knee_tune.config.recipe import Recipe
from knee_tune.tasks.base import Split, Task
from knee_tune.workers.group import Group

R = TypeVar("R", bound=Recipe)


class FusableTask(Task[R]):
    """A task that declares: its ``loss`` and ``score`` are tensor code that ``torch.func.vmap`` can
    run for many models at once, and batches of one step have the same shapes for every random seed.

    Its model must be without state besides its weights (no BatchNorm statistics) and draw nothing
    while it trains (no dropout): see ``training/fusable.py``, which looks.
    """

    @abstractmethod
    def eval_batches(self, split: Split, group: Group) -> Iterator[Any]:
        """This rank's part of ``split``, on ``group.device``; the same for every random seed."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Any) -> tuple[Mapping[str, Tensor], float]:
        """Every metric summed over a batch, and the count (examples) that makes it a mean."""

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """The mean of every metric over the split."""
        totals: dict[str, float] = {}
        examples = 0.0
        for batch in self.eval_batches(split, group):
            sums, count = self.score(model, batch)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            examples += count
            group.alive()
        *values, examples = group.sum([*totals.values(), examples])
        return dict(zip(totals, (value / examples for value in values), strict=True))
