"""Batches of pictures, decoded, cropped and resized ahead of time by worker processes.

Which pictures a batch has, and how each of them is cropped, follows from (seed, epoch, picture)
alone. So the number of workers changes nothing, and a run that is resumed in the middle of an epoch
decodes nothing it will not train on.
"""

import ctypes
import math
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
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as transforms

from knee_tune.errors import UserError, first_line
from knee_tune.tasks.base import Examples
from knee_tune.tasks.seeding import generator
from knee_tune.tasks.vision.image_classifier import normalise
from knee_tune.tasks.vision.imagenet_index import FORMATS, Files
from knee_tune.workers.cores import usable_cores
from knee_tune.workers.group import Group

Pixels = NDArray[np.uint8]
"""A picture (height, width, 3), red first."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, by channel, for pixels in [0, 1]."""

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the picture that a training crop covers, and width over height of it."""

_TRIES = 10

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
    """Load the requested batches, in that order, normalised and on ``group.device``.

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
    """Have the kernel end this worker with its rank; elsewhere it looks every few seconds.

    Until it ends it holds the rank's line to the driver open, who would wait for it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_it_is(batch: Any) -> Any:
    return batch


class UnreadableError(Exception):
    """A picture cannot be decoded; the message says which and why, in one line."""


def read(path: Path) -> Image.Image:
    """Decode a picture to RGB; UnreadableError if it is not one."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # there is no end to what damaged bytes lead to
        raise UnreadableError(f"{path}: no readable image ({first_line(error)[:200]})") from None


def training_view(image: Image.Image, *, side: int, draw: torch.Generator) -> Pixels:
    """Crop at random and resize to ``side`` pixels; mirrored half of the time."""
    *numbers, flip = torch.rand(4 * _TRIES + 1, generator=draw, dtype=torch.float64).tolist()
    view = image.crop(random_box(*image.size, numbers)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    crop = np.asarray(view)
    return crop[:, ::-1] if flip < 0.5 else crop


def evaluation_view(image: Image.Image, *, side: int) -> Pixels:
    """Resize the shorter side to 8/7 of ``side`` pixels and crop the centre."""
    whole = transforms.resize(image, [round(side * 8 / 7)])
    return np.asarray(transforms.center_crop(whole, [side, side]))


def random_box(width: int, height: int, draws: list[float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop; ``draws`` are 40 numbers in [0, 1).

    As torchvision's RandomResizedCrop: area and aspect ratio (in logarithms) are uniform. If ten
    tries do not fit into the picture, it is the largest crop in the middle of an allowed ratio.
    """
    for each in range(0, 4 * _TRIES, 4):
        share, slope, left, top = draws[each : each + 4]
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * share)
        low, high = map(math.log, RATIO)
        ratio = math.exp(low + (high - low) * slope)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def normalised(views: Tensor) -> Tensor:
    """Views (n, side, side, 3) uint8 as networks take them, (n, 3, side, side) float32."""
    return normalise(views, mean=MEAN, std=STD)


def as_picture(raw: Any) -> Image.Image:
    """Raw pixels (height, width, 3), 0 to 255, as a picture."""
    return Image.fromarray(np.asarray(raw).astype(np.uint8))
