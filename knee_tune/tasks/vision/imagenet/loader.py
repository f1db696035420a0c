"""Batches of pictures, decoded ahead of time by worker processes.

Which pictures a batch has, and how each of them is cropped, follows from (seed, epoch, picture)
alone. So the number of workers changes nothing, and a run that is resumed in the middle of an epoch
decodes nothing it will not train on.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from knee_tune.errors import UserError
from knee_tune.tasks.classifier import Examples
from knee_tune.tasks.seeding import generator
from knee_tune.tasks.vision.imagenet.index import Files
from knee_tune.tasks.vision.imagenet.pictures import (
    UnreadableError,
    evaluation_view,
    normalised,
    read,
    training_view,
)
from knee_tune.workers.cores import usable_cores
from knee_tune.workers.group import Group

_PREFETCHED = 2
"""Batches that every worker has ready."""

MOST_WORKERS = 16
"""Of a rank, unless the recipe says otherwise; each of them holds batches in memory."""

_PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The pictures of one batch."""

    pictures: NDArray[np.int64]
    """Their places in the index."""
    epoch: int | None
    """Which epoch's random crops; None: as pictures are evaluated."""


@dataclass(frozen=True, kw_only=True)
class Reader(Dataset[Any]):
    """Reads the batches that are requested, in whatever process."""

    root: Path
    files: Files
    side: int
    seed: int

    def __getitem__(self, request: Request) -> tuple[Tensor, Tensor] | str:
        """Pixels (n, side, side, 3) uint8 and labels (n,), or what is wrong with a picture."""
        pixels = np.empty((len(request.pictures), self.side, self.side, 3), dtype=np.uint8)
        try:
            for row, picture in zip(pixels, request.pictures.tolist(), strict=True):
                row[:] = self._view(picture, request.epoch)
        except UnreadableError as error:
            return str(error)
        labels = self.files.labels[request.pictures].astype(np.int64)
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    def _view(self, picture: int, epoch: int | None) -> NDArray[np.uint8]:
        image = read(self.files.path(self.root, picture))
        if epoch is None:
            return evaluation_view(image, side=self.side)
        draw = generator(self.seed, "crop", epoch, picture)
        return training_view(image, side=self.side, draw=draw)


def load(
    reader: Reader, requests: Iterable[Request], *, workers: int | None, group: Group
) -> Iterator[Examples]:
    """The batches that are requested, in that order, normalised and on ``group.device``.

    ``workers`` None: this rank's share of the machine's cores, :data:`MOST_WORKERS` of them at
    most. UserError for an unreadable picture.
    """
    processes = min(share_of_cores(group), MOST_WORKERS) if workers is None else workers
    if isinstance(requests, Sequence):  # to start a worker takes longer than to read a batch or two
        processes = min(processes, len(requests) // 2)
    on_gpu = group.device.type == "cuda"
    batches: Iterable[Any] = DataLoader(
        reader,
        batch_size=None,
        sampler=requests,
        num_workers=processes,
        prefetch_factor=_PREFETCHED if processes else None,
        multiprocessing_context="fork" if processes and os.name == "posix" else None,
        pin_memory=on_gpu,
        collate_fn=_as_it_is,
        worker_init_fn=_end_with_the_parent,
        generator=torch.Generator(),  # it would draw from the global one
    )
    for batch in batches:
        if isinstance(batch, str):
            raise UserError(f"{batch}; fetch it again, or remove it and prepare the data again")
        pixels, labels = (tensor.to(group.device, non_blocking=on_gpu) for tensor in batch)
        yield normalised(pixels), labels


def share_of_cores(group: Group) -> int:
    """Cores that this process may use, divided among the ranks of this machine."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", group.world_size))
    return max(1, usable_cores() // here)


def _end_with_the_parent(_: int) -> None:
    """Where the kernel can see to it; elsewhere a worker looks for its parent every few seconds.

    Until it ends it holds the rank's line to the driver open, who would wait for it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_it_is(batch: Any) -> Any:
    return batch
