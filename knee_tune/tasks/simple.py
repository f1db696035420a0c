"""A task outside this package, as light as it can be: data sets, model, loss, metrics of a batch.

Order, sharding, sums over ranks, steps per epoch and the fingerprint of the data follow from these.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from knee_tune.config.recipe import Direction, Metric, SimpleRecipe
from knee_tune.errors import UserError
from knee_tune.tasks.base import R, Split, Task, check_batch_size
from knee_tune.tasks.seeding import (
    epochs_after,
    generator,
    seed_beside_torch,
    seed_generators,
    seeded,
    stream_seed,
    undisturbed,
)
from knee_tune.workers.group import Group

MOST_READ = 2_000
"""Items of a data set that its fingerprint reads; of a larger one so many, evenly spread."""


class SimpleTask(ABC, Generic[R]):
    """A workload that says what to train and how to measure a batch; the rest follows.

    ``self.recipe`` has the settings: those of :class:`~knee_tune.SimpleRecipe`, or of a subclass of
    it that is named in brackets, ``class MyTask(SimpleTask[MyRecipe])``. ``self.data_dir`` is the
    folder for data below the home, ``self.seed`` the random seed.
    """

    metrics: ClassVar[Mapping[str, Direction] | Sequence[Metric]]
    """What :meth:`evaluate_batch` measures: name and ``minimize`` or ``maximize``."""

    watched: ClassVar[str]
    """The metric that trials are pruned on, and the objective unless the recipe says another."""

    space: ClassVar[Mapping[str, Any]] = {}
    """What is searched, as in ``space`` of a search-space file; a YAML of the file's name beside it
    may say so too. Without either: a decade around the recipe's seed LR on both sides."""

    def __init__(self, recipe: R, *, data_dir: Path, seed: int) -> None:
        self.recipe, self.data_dir, self.seed = recipe, data_dir, seed

    @abstractmethod
    def datasets(self) -> Mapping[str, Any]:
        """Return the data sets ``train``, ``valid`` and, if there is one, ``test``.

        Each is map-style: it has a length, and items by their number. What items draw at random
        (torch, numpy, random) is drawn under a seed of their place, so augmentation may be in them.
        Called once.
        """

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return a fresh model on the CPU; torch's global generator is seeded."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        """Return the mean loss of a batch, and the count (examples, tokens) that it is over."""

    @abstractmethod
    def evaluate_batch(
        self, model: nn.Module, batch: Any
    ) -> Mapping[str, tuple[Tensor | float, float]]:
        """Return each metric of a batch as its sum and the count that makes it a mean."""

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard ``model`` over the ranks, in place: ``fully_shard`` of its blocks, then of itself.

        Called only where there are several ranks, before the optimizer is made; a task without this
        method trains with DistributedDataParallel. ``mesh`` has one dimension, all ranks.
        """
        raise NotImplementedError

    def build_optimizer(self, model: nn.Module) -> optim.Optimizer | None:
        """Return an optimizer of one's own; None: the recipe's.

        Its groups may have a ``lr_scale`` each: their LR is the schedule's times that; and a
        ``decay_scale``, at most 1: their decay takes that share of the schedule's steps.
        """
        return None

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        """Return what else the training changes, by name, as an average of the weights.

        Whatever has ``state_dict`` and ``load_state_dict``, and is the same on every rank. It is
        saved and restored with every checkpoint; modules are moved to the model's device.
        """
        return {}

    def after_step(self, model: nn.Module, step: int) -> None:
        """Do what is due after the update of ``step`` (from 1), as moving an average."""

    def measured(self, model: nn.Module) -> nn.Module:
        """Return the module that is measured, kept and registered: an average, or the model.

        Its weights have the names of the model's.
        """
        return model

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[Any] | NDArray[Any]:
        """Return one answer per raw input; without it the model is not registered."""
        raise UserError(
            f"{type(self).__name__}: it has no method predict, so its models cannot be registered; "
            "add predict(self, model, inputs)"
        )

    def examples(self) -> list[Any]:
        """Return a few raw inputs for :meth:`predict`; by default those of two items."""
        parts = self.datasets()
        items = parts.get("test") or parts["valid"]
        first = [items[index] for index in range(min(2, len(items)))]
        inputs = [item[0] if isinstance(item, tuple | list) else item for item in first]
        return [each.numpy() if isinstance(each, Tensor) else each for each in inputs]

    def assets(self) -> dict[str, Path]:
        """Return files below ``data_dir``, by relative name, that :meth:`predict` needs."""
        return {}

    def collate(self, items: list[Any]) -> Any:
        """Return the batch of these items; its tensors are moved to the device."""
        return default_collate(items)


class AsTask(Task[SimpleRecipe]):
    """A :class:`SimpleTask` as the training loop sees every task."""

    def __init__(self, simple: SimpleTask[Any]) -> None:
        super().__init__(simple.recipe, data_dir=simple.data_dir, seed=simple.seed)
        self.simple = simple
        self._parts: dict[str, _Items] | None = None

    def with_seed(self, seed: int) -> Self:
        """See :class:`Task`."""
        made = type(self.simple)(self.recipe, data_dir=self.data_dir, seed=seed)
        return type(self)(made)

    def describe(self) -> tuple[str, dict[str, int]]:
        """See :class:`Task`. The fingerprint reads :data:`MOST_READ` items of every data set."""
        digest = hashlib.sha256()
        for name, items in sorted(self._items.items()):
            digest.update(f"{name} {len(items)}".encode())
            spread = range(0, len(items), max(1, len(items) // MOST_READ))
            for index in islice(spread, MOST_READ):
                _digest(digest, items.item(index))
        return digest.hexdigest()[:16], {name: len(items) for name, items in self._items.items()}

    def steps_per_epoch(self, group: Group) -> int:
        """Return the number of whole batches, the same for every world size."""
        size = self.recipe.batch_size
        check_batch_size(size, accumulate=self.recipe.accumulate, group=group)
        steps = len(self._items["train"]) // size
        if not steps:
            raise UserError(
                f"recipe.batch_size={size}: the training set has only {len(self._items['train'])} "
                "examples; use a smaller one"
            )
        return steps

    def build_model(self) -> nn.Module:
        """See :class:`Task`."""
        return self.simple.build_model()

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """See :class:`Task`."""
        self.simple.shard(model, mesh)

    @property
    def shards(self) -> bool:
        """See :class:`Task`."""
        return type(self.simple).shard is not SimpleTask.shard

    def build_optimizer(self, model: nn.Module) -> optim.Optimizer | None:
        """See :class:`Task`."""
        return self.simple.build_optimizer(model)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Any]]:
        """See :class:`Task`. Python's and numpy's generators are seeded for the step, too."""
        batches = self._loaded("train", self._train_places(start_step, group), group)
        step = start_step
        while True:
            micro_batches = list(islice(batches, self.recipe.accumulate))
            step += 1
            seed_beside_torch(stream_seed(self.seed, "step", group.rank, step))
            yield micro_batches

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        """Return the sum of the losses and their count."""
        mean, count = self.simple.loss(model, batch)
        return mean * count, count

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Return the mean of every metric over the split."""
        if split not in self._items:
            raise UserError(f"{self._name}.datasets: it has no '{split}'; add one")
        names = [metric.name for metric in self.recipe.metrics]
        sums = dict.fromkeys(names, 0.0)
        counts = dict.fromkeys(names, 0.0)
        mine = range(group.rank, len(self._items[split]), group.world_size)
        size = self.recipe.batch_size
        places = ([(0, i) for i in mine[at : at + size]] for at in range(0, len(mine), size))
        counted = -(-len(mine) // size)
        # A rank that calls a sharded model waits for all others, and none has more than rank 0.
        most = -(-len(range(0, len(self._items[split]), group.world_size)) // size)
        others = repeat([(0, 0)], most - counted if self.shards else 0)
        with undisturbed():
            for number, batch in enumerate(self._loaded(split, chain(places, others), group)):
                measured = self.simple.evaluate_batch(model, batch)
                if measured.keys() != sums.keys():
                    raise UserError(
                        f"{self._name}.evaluate_batch: it gave {', '.join(measured) or 'nothing'}, "
                        f"but metrics are {', '.join(names)}"
                    )
                for name, (total, count) in measured.items() if number < counted else ():
                    sums[name] += float(total)
                    counts[name] += float(count)
                group.alive()
        totals = group.sum([*sums.values(), *counts.values()])
        return {
            name: total / count if count else float("nan")
            for name, total, count in zip(
                names, totals[: len(names)], totals[len(names) :], strict=True
            )
        }

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        """See :class:`Task`."""
        return self.simple.state(model)

    def after_step(self, model: nn.Module, step: int) -> None:
        """See :class:`Task`."""
        self.simple.after_step(model, step)

    def measured(self, model: nn.Module) -> nn.Module:
        """See :class:`Task`."""
        return self.simple.measured(model)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[Any] | NDArray[Any]:
        """See :class:`Task`."""
        return self.simple.predict(model, inputs)

    def examples(self) -> list[Any]:
        """See :class:`Task`."""
        return self.simple.examples()

    def assets(self) -> dict[str, Path]:
        """See :class:`Task`."""
        return self.simple.assets()

    @property
    def _name(self) -> str:
        return type(self.simple).__name__

    @property
    def _items(self) -> dict[str, "_Items"]:
        if self._parts is None:
            found = self.simple.datasets()
            for needed in ("train", "valid"):
                if not len(found.get(needed, ())):
                    raise UserError(f"{self._name}.datasets: it has no '{needed}'; add one")
            own = type(self.simple).collate is not SimpleTask.collate
            self._parts = {
                name: _Items(
                    data, self.simple.collate, own=own, seed=self.seed if name == "train" else 0
                )
                for name, data in found.items()
            }
        return self._parts

    def _train_places(self, start_step: int, group: Group) -> Iterator[list["Place"]]:
        """Yield this rank's micro-batches, step after step: epoch and number of every item."""
        count, size = len(self._items["train"]), self.recipe.batch_size
        for epoch, left in epochs_after(start_step, self.steps_per_epoch(group)):
            order = torch.randperm(count, generator=generator(self.seed, "order", epoch))
            for step in left:
                mine = order[step * size + group.rank : (step + 1) * size : group.world_size]
                for part in mine.tensor_split(self.recipe.accumulate):
                    yield [(epoch, index) for index in part.tolist()]

    def _loaded(self, split: str, places: Iterator[list["Place"]], group: Group) -> Iterator[Any]:
        """Load the batches at these places, on the device."""
        loader: DataLoader[Any] = DataLoader(
            self._items[split],  # type: ignore[arg-type]
            batch_sampler=places,
            num_workers=self.recipe.workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # the global one is left alone
        )
        for batch in loader:
            yield pytree.tree_map_only(Tensor, lambda leaf: leaf.to(group.device), batch)


Place = tuple[int, int]
"""An epoch, and the number of an item in its data set."""


class _Items:
    """A data set whose items are drawn under a seed of their place, in whichever process."""

    def __init__(self, data: Any, collate: Any, *, own: bool, seed: int) -> None:
        self._data, self._collate, self._seed = data, collate, seed
        self._tensors = None if own else _in_memory(data)

    def __len__(self) -> int:
        return len(self._data)

    def item(self, index: int) -> Any:
        """Return one item, the same for every random seed."""
        with seeded(index):
            return self._data[index]

    def __getitems__(self, places: list[Place]) -> Any:
        """Return the batch of the items at these places."""
        if self._tensors is not None:
            numbers = torch.tensor([index for _, index in places], dtype=torch.long)
            return [each.index_select(0, numbers) for each in self._tensors]
        with undisturbed():
            items = [self._draw(place) for place in places]
            seed_generators(stream_seed(self._seed, "collate", *places[0]))
            return self._collate(items)

    def _draw(self, place: Place) -> Any:
        seed_generators(stream_seed(self._seed, "item", *place))
        return self._data[place[1]]


def _in_memory(data: Any) -> list[Tensor] | None:
    """Return the tensors of a TensorDataset, or of a part of one: a batch is cut at once."""
    if type(data) is TensorDataset:
        return list(data.tensors)
    if type(data) is Subset and (whole := _in_memory(data.dataset)) is not None:
        numbers = torch.as_tensor(data.indices)
        return [each[numbers] for each in whole]
    return None


def _as_it_is(batch: Any) -> Any:
    return batch


def _digest(digest: Any, item: Any) -> None:
    """Take in what an item holds: tensors, arrays, images, numbers, text."""
    for leaf in pytree.tree_leaves(item):
        if isinstance(leaf, Tensor):
            leaf = leaf.detach().cpu().numpy()
        digest.update(f"{type(leaf).__name__} {getattr(leaf, 'shape', '')}".encode())
        if hasattr(leaf, "tobytes"):  # arrays, and PIL's images
            digest.update(leaf.tobytes())
        elif isinstance(leaf, str | bytes | int | float | bool | None):
            digest.update(repr(leaf).encode())
