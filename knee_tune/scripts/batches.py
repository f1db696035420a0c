"""A DataLoader's batches as a function of (seed, epoch, number): a run can begin at any of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from knee_tune.errors import UserError
from knee_tune.tasks.seeding import epochs_after, seeded, stream_seed

Place = tuple[int, int, Sequence[Any]]
"""Of a batch: its epoch, its number in there, and the indices of its items."""


def batches_after(
    loader: DataLoader[Any], start_step: int, *, seed: int, rank: int
) -> Iterator[Any]:
    """Yield the batches of every step after ``start_step``, for ever; none before it is loaded.

    The order of an epoch is drawn from (seed, epoch). What the data set and the collate function
    draw from the global generators follows from the batch's place and the rank, also in worker
    processes, so the bits do not depend on where a run began, nor on the number of workers.
    UserError for a loader whose epochs cannot be begun in their middle.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        raise UserError(
            "run.batches: only a map-style data set, in batches, can be begun in the middle of an "
            "epoch; use run.steps() and give join state={'loader': ...} with a state_dict"
        )
    if not len(loader):
        raise UserError("run.batches: the loader has no batch; is its data set empty?")
    placed = DataLoader(
        _Placed(loader.dataset, loader.collate_fn, seed=seed, rank=rank),
        sampler=_Order(loader, start_step, seed=seed),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor,
        multiprocessing_context=loader.multiprocessing_context,
    )
    with seeded(stream_seed(seed, "workers")):  # it draws a seed for them, wherever a run begins
        return iter(placed)


class _Order:
    """The places of all batches after a step, epoch after epoch."""

    def __init__(self, loader: DataLoader[Any], start_step: int, *, seed: int) -> None:
        self._loader, self._start, self._seed = loader, start_step, seed

    def __iter__(self) -> Iterator[Place]:
        for epoch, numbers in epochs_after(self._start, len(self._loader)):
            order = self._epoch(epoch)
            yield from ((epoch, number, order[number]) for number in numbers)

    def _epoch(self, epoch: int) -> list[Sequence[Any]]:
        """The indices of all batches of an epoch."""
        samplers = _samplers(self._loader)
        for sampler in samplers:
            if isinstance(sampler, DistributedSampler):
                sampler.seed = stream_seed(self._seed, "order") >> 32
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        seed = stream_seed(self._seed, "order", epoch)
        generators: set[Any] = {getattr(each, "generator", None) for each in samplers}
        for generator in generators - {None}:
            generator.manual_seed(seed)
        with seeded(seed):
            return list(self._loader.batch_sampler or ())


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    """All that has a part in a loader's order: itself, its samplers, and those within them."""
    found: list[Any] = [loader]
    for each in found:
        inner = (getattr(each, name, None) for name in ("sampler", "batch_sampler"))
        found += [sampler for sampler in inner if sampler is not None and sampler not in found]
    return found


class _Placed(Dataset[Any]):
    """Batches by their place."""

    def __init__(self, dataset: Any, collate: Any, *, seed: int, rank: int) -> None:
        self._dataset, self._collate, self._seed, self._rank = dataset, collate, seed, rank

    def __getitem__(self, place: Place) -> Any:
        epoch, number, indices = place
        with seeded(stream_seed(self._seed, "batch", self._rank, epoch, number)):
            at_once = getattr(self._dataset, "__getitems__", None)
            items = at_once(indices) if at_once else [self._dataset[index] for index in indices]
            return self._collate(items)


def _as_it_is(batch: Any) -> Any:
    return batch
