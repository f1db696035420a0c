"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in ten classes, all of them on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.tasks.base import Examples, Split
from knee_tune.tasks.seeding import epochs_after, generator, noisy_labels
from knee_tune.tasks.vision.image_classifier import ImageClassifier, class_scores, normalise
from knee_tune.tasks.vision.images import ImageManifest, map_images, read_manifest
from knee_tune.tasks.vision.models import build_network
from knee_tune.tasks.vision.recipe import Cifar10Recipe
from knee_tune.workers.group import Group

CLASSES = 10
SIDE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training images, by channel, for pixels in [0, 1]."""

TOGETHER = 1000
"""Images of one batch of one rank's evaluation."""

_SPLIT_SEED = 60_000


class Cifar10Task(ImageClassifier[Cifar10Recipe]):
    """Images of a prepared set (see :mod:`knee_tune.tasks.vision.images`).

    One fixed shuffle of the training images puts the validation images at its end; the study's
    seed never moves an image from one split to another. The seed decides which training labels
    are replaced, the order of the images, and their crops and flips.
    """

    def with_seed(self, seed: int) -> Self:
        """The same task with another random seed; they share the images."""
        other = super().with_seed(seed)
        other._splits, other._resident = self._splits, self._resident
        return other

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint and images per split; UserError if a file is not as it was prepared."""
        manifest = read_manifest(self._folder, task="cifar10", verify=True)
        return manifest.fingerprint[:16], {name: len(y) for name, (_, y) in self._splits.items()}

    def steps_per_epoch(self, group: Group) -> int:
        """Number of whole batches, the same for every world size.

        UserError if a rank's micro-batch may be one image: BatchNorm compares the images of one.
        """
        parts = self.recipe.accumulate * group.world_size
        if self.recipe.batch_size < 2 * parts:
            raise UserError(
                f"recipe.batch_size={self.recipe.batch_size}: {group.world_size} ranks of "
                f"{self.recipe.accumulate} micro-batches need at least {2 * parts} images a step"
            )
        return len(self._splits["train"][1]) // self.recipe.batch_size

    def build_model(self) -> nn.Module:
        """The recipe's network, its weights in the memory format of its images."""
        side = self.recipe.side
        network = build_network(self.recipe.model, classes=CLASSES, image_side=side)
        return network.to(memory_format=torch.channels_last)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Examples]]:
        """This rank's part of every batch, cut into micro-batches."""
        padded, _ = self._on(group.device, "train")
        labels = self._noisy_labels.to(group.device)
        batch = self.recipe.batch_size
        for epoch, left in epochs_after(start_step, self.steps_per_epoch(group)):
            draws = Draws.of_epoch(
                epoch,
                seed=self.seed,
                images=len(labels),
                padding=self.recipe.crop_padding,
                flip=self.recipe.flip,
                device=group.device,
            )
            for step in left:
                mine = draws[step * batch + group.rank : (step + 1) * batch : group.world_size]
                images = normalised(crop(padded, mine, side=self.recipe.side))
                yield list(
                    zip(
                        images.tensor_split(self.recipe.accumulate),
                        labels[mine.order].tensor_split(self.recipe.accumulate),
                        strict=True,
                    )
                )

    def train_examples(self, group: Group, *, limit: int | None) -> Iterator[Examples]:
        """Training images, not cropped or flipped, with the seed's noisy labels."""
        padded, _ = self._on(group.device, "train")
        inside = slice(self.recipe.crop_padding, self.recipe.crop_padding + self.recipe.side)
        labels = self._noisy_labels.to(group.device)
        yield from _in_batches(padded[:limit, inside, inside], labels[:limit], group)

    def eval_batches(self, split: Split, group: Group) -> Iterator[Examples]:
        """This rank's part of the split, with the true labels."""
        yield from _in_batches(*self._on(group.device, split), group)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> NDArray[np.float32]:
        """Class scores (n, 10), before the softmax, of images (n, 32, 32, 3) uint8."""
        images = torch.as_tensor(np.asarray(inputs, dtype=np.uint8)).view(-1, SIDE, SIDE, 3)
        small = _averaged(images, side=self.recipe.side)
        return class_scores(model, small, normalised, together=TOGETHER)

    def examples(self) -> list[Any]:
        """Two images of the test split, (32, 32, 3) uint8."""
        return list(map_images(self._folder, self._manifest).test[:2])

    @property
    def _folder(self) -> Path:
        return self.data_dir / self.recipe.data

    @cached_property
    def _manifest(self) -> ImageManifest:
        return read_manifest(self._folder, task="cifar10")

    @cached_property
    def _splits(self) -> dict[str, Examples]:
        """Images (n, side, side, 3) uint8 and labels (n,) int64, on the CPU."""
        found = map_images(self._folder, self._manifest)
        rest = len(found.train) - self.recipe.validation
        if rest < self.recipe.batch_size:
            raise UserError(
                f"recipe.validation={self.recipe.validation}: of {len(found.train):,} images in "
                f"{self._folder} it leaves {max(rest, 0)} to train on, less than one batch"
            )
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(found.train))
        mine = {"train": order[:rest][: self.recipe.train_examples], "valid": order[rest:]}
        raw = {
            **{name: (found.train[rows], found.train_labels[rows]) for name, rows in mine.items()},
            "test": (np.array(found.test), np.array(found.test_labels)),
        }
        return {
            name: (
                _averaged(torch.from_numpy(images), side=self.recipe.side),
                torch.from_numpy(labels).long(),
            )
            for name, (images, labels) in raw.items()
        }

    @cached_property
    def _resident(self) -> dict[tuple[torch.device, Split | Literal["train"]], Examples]:
        return {}

    def _on(self, device: torch.device, split: Split | Literal["train"]) -> Examples:
        """Images, padded if they are to be cropped, and labels of a split, kept on the device."""
        key = device, split
        if key not in self._resident:
            images, labels = self._splits[split]
            padding = self.recipe.crop_padding if split == "train" else 0
            self._resident[key] = pad(images.to(device), padding), labels.to(device)
        return self._resident[key]

    @cached_property
    def _noisy_labels(self) -> Tensor:
        _, labels = self._splits["train"]
        share = self.recipe.label_noise
        return noisy_labels(labels, share=share, classes=CLASSES, seed=self.seed)


def _in_batches(images: Tensor, labels: Tensor, group: Group) -> Iterator[Examples]:
    """This rank's part of every batch; one without an image for it is left out."""
    stride = TOGETHER * group.world_size
    for start in range(group.rank, len(labels), stride):
        mine = slice(start, start - group.rank + stride, group.world_size)
        yield normalised(images[mine]), labels[mine]


def _averaged(images: Tensor, *, side: int) -> Tensor:
    """Images (n, 32, 32, 3) as (n, side, side, 3): every pixel the mean of those it covers."""
    factor = SIDE // side
    if factor == 1:
        return images
    blocks = images.view(-1, side, factor, side, factor, 3)
    return blocks.float().mean(dim=(2, 4)).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Order, crops and flips of one epoch, (n,) each.

    Drawn at its start, on the CPU and from a stream of their own: every device and every partition
    over ranks sees the same images, and an epoch can be entered at any step.
    """

    order: Tensor
    """The image at every place of the epoch."""
    top: Tensor
    left: Tensor
    """The corner of the crop in the padded image, 0 to twice the padding."""
    flip: Tensor
    """Whether left and right are swapped, bool."""

    @classmethod
    def of_epoch(
        cls, epoch: int, *, seed: int, images: int, padding: int, flip: bool, device: torch.device
    ) -> "Draws":
        """Draw from (``seed``, ``epoch``), and move to ``device`` in one go."""
        draw = generator(seed, "images", epoch)
        order = torch.randperm(images, generator=draw)
        corners = torch.randint(2 * padding + 1, (2, images), generator=draw)
        flips = torch.randint(2, (images,), generator=draw) * flip
        order, top, left, flips = torch.stack([order, *corners, flips]).to(device)
        return cls(order=order, top=top, left=left, flip=flips.bool())

    def __getitem__(self, places: slice) -> "Draws":
        return Draws(
            order=self.order[places],
            top=self.top[places],
            left=self.left[places],
            flip=self.flip[places],
        )


def pad(images: Tensor, padding: int) -> Tensor:
    """Add black pixels around images, (n, s, s, 3) -> (n, s + 2 padding, s + 2 padding, 3)."""
    n, height, width, channels = images.shape
    padded = images.new_zeros(n, height + 2 * padding, width + 2 * padding, channels)
    padded[:, padding : padding + height, padding : padding + width] = images
    return padded


def crop(padded: Tensor, draws: Draws, *, side: int) -> Tensor:
    """Crop and flip the drawn images, (n, side, side, 3) uint8, in one gather on the device."""
    span = torch.arange(side, device=padded.device)
    rows = draws.top[:, None] + span
    columns = draws.left[:, None] + torch.where(draws.flip[:, None], side - 1 - span, span)
    return padded[draws.order[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalised(images: Tensor) -> Tensor:
    """Images (n, s, s, 3) uint8 as networks take them, (n, 3, s, s) float32."""
    return normalise(images, mean=MEAN, std=STD)
