"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in ten classes, all of them on the device."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.tasks.base import Split
from knee_tune.tasks.classifier import Examples
from knee_tune.tasks.epochs import epochs_after
from knee_tune.tasks.label_noise import with_noise
from knee_tune.tasks.vision.augment import Draws, crop, normalised, pad
from knee_tune.tasks.vision.cifar10.recipe import Cifar10Recipe
from knee_tune.tasks.vision.image_classifier import ImageClassifier, class_scores
from knee_tune.tasks.vision.images import ImageManifest, map_images, read_manifest
from knee_tune.tasks.vision.models import build_network
from knee_tune.workers.group import Group

CLASSES = 10
SIDE = 32
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
        """Whole batches only, whatever the world size.

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
        """See :class:`~knee_tune.tasks.classifier.Classifier`."""
        padded, _ = self._on(group.device, "train")
        inside = slice(self.recipe.crop_padding, self.recipe.crop_padding + self.recipe.side)
        labels = self._noisy_labels.to(group.device)
        yield from _in_batches(padded[:limit, inside, inside], labels[:limit], group)

    def eval_batches(self, split: Split, group: Group) -> Iterator[Examples]:
        """With the true labels."""
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
        return with_noise(labels, share=share, classes=CLASSES, seed=self.seed)


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
