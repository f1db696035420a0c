"""ImageNet (or any folder of images) with a torchvision network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.tasks.base import Examples, Split
from knee_tune.tasks.prepared_folder import MANIFEST
from knee_tune.tasks.seeding import epochs_after, generator
from knee_tune.tasks.vision.image_classifier import ImageClassifier, class_scores
from knee_tune.tasks.vision.imagenet_index import (
    Files,
    IndexManifest,
    look_at,
    read_files,
    read_manifest,
)
from knee_tune.tasks.vision.imagenet_loader import (
    Reader,
    Request,
    as_picture,
    evaluation_view,
    load,
    normalised,
    read,
)
from knee_tune.tasks.vision.models import build_network
from knee_tune.tasks.vision.recipe import ImageNetRecipe
from knee_tune.workers.group import Group

SPLIT_SEED = 2012
"""Of the shuffle that cuts the valid split from train/; the study's seed never moves an image."""


class ImageNetTask(ImageClassifier[ImageNetRecipe]):
    """The images of an indexed folder (see :mod:`knee_tune.tasks.vision.imagenet_index`).

    The test split is ``val/``, the images that ImageNet publishes for validation and that the
    literature calls the test set. Winners must not be chosen by them, so the valid split is cut
    from ``train/``: ``recipe.validation`` images of every class, always the same ones.
    """

    open_dimensions = 3
    """Photographs are of any height and width."""

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint of the index and images per split; UserError if files have changed."""
        look_at(self._manifest, self._files)
        return self._manifest.fingerprint, {
            "train": len(self._splits["train"]),
            "valid": len(self._splits["valid"]),
            "test": len(self._files["val"]),
        }

    def steps_per_epoch(self, group: Group) -> int:
        """Number of whole batches, the same for every world size; UserError if there is none.

        A rank's micro-batch has two images at least: BatchNorm compares the images of one.
        """
        fewest = 2 * group.world_size * self.recipe.accumulate
        batch, images = self.recipe.batch_size, len(self._splits["train"])
        if not fewest <= batch <= images:
            raise UserError(
                f"recipe.batch_size={batch}: must be between {fewest} (two images for every "
                f"micro-batch of every rank) and {images} (the training images)"
            )
        return images // batch

    def build_model(self) -> nn.Module:
        """The recipe's network, its weights in the memory format of its images."""
        network = build_network(
            self.recipe.model,
            classes=len(self._manifest.classes),
            image_side=self.recipe.image_side,
        )
        return network.to(memory_format=torch.channels_last)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Examples]]:
        """This rank's part of every batch, cut into micro-batches."""
        batches = self._load("train", self._requests(start_step, group), group)
        while True:
            yield list(islice(batches, self.recipe.accumulate))

    def eval_batches(self, split: Split, group: Group) -> Iterator[Examples]:
        """This rank's part of the split, nothing augmented."""
        if split == "test":
            return self._in_order("val", np.arange(len(self._files["val"])), group)
        return self._in_order("train", self._splits["valid"], group)

    def score(self, scores: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Top-5 accuracy too: the class is among the five best (of all, if there are fewer)."""
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        near = (best == labels[:, None]).any(dim=1)
        return {**super().score(scores, labels), "top5": 100 * near.sum()}

    def train_examples(self, group: Group, *, limit: int | None) -> Iterator[Examples]:
        """Training images, cropped as the test images are; classes are mixed."""
        return self._in_order("train", self._splits["train"][:limit], group)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> NDArray[np.float32]:
        """Class scores (n, classes) float32 of raw images (h, w, 3), 0 to 255, of any size."""
        side, together = self.recipe.image_side, self.recipe.evaluation_batch
        views = [evaluation_view(as_picture(image), side=side) for image in inputs]
        return class_scores(model, torch.from_numpy(np.stack(views)), normalised, together=together)

    def assets(self) -> dict[str, Path]:
        """The manifest, which names the classes."""
        return {f"{self._folder.name}/{MANIFEST}": self._folder / MANIFEST}

    def examples(self) -> list[Any]:
        """Two images of the test split, (side, side, 3) uint8."""
        root, files = self._manifest.root / "val", self._files["val"]
        return [
            evaluation_view(read(files.path(root, index)), side=self.recipe.image_side)
            for index in (0, len(files) - 1)
        ]

    def _requests(self, start_step: int, group: Group) -> Iterator[Request]:
        """This rank's micro-batches of every step after ``start_step``."""
        pictures, batch = self._splits["train"], self.recipe.batch_size
        for epoch, left in epochs_after(start_step, self.steps_per_epoch(group)):
            draw = generator(self.seed, "order", epoch)
            order = pictures[torch.randperm(len(pictures), generator=draw).numpy()]
            for step in left:
                mine = order[step * batch + group.rank : (step + 1) * batch : group.world_size]
                for part in np.array_split(mine, self.recipe.accumulate):
                    yield Request(pictures=part, epoch=epoch)

    def _in_order(
        self, folder: str, pictures: NDArray[np.int64], group: Group
    ) -> Iterator[Examples]:
        mine, size = pictures[group.rank :: group.world_size], self.recipe.evaluation_batch
        parts = [mine[begin : begin + size] for begin in range(0, len(mine), size)]
        return self._load(folder, [Request(pictures=each, epoch=None) for each in parts], group)

    def _load(self, folder: str, requests: Iterable[Request], group: Group) -> Iterator[Examples]:
        reader = Reader(
            root=self._manifest.root / folder,
            files=self._files[folder],
            side=self.recipe.image_side,
            seed=self.seed,
        )
        return load(reader, requests, workers=self.recipe.workers, group=group)

    @property
    def _folder(self) -> Path:
        return self.data_dir / self.recipe.data

    @cached_property
    def _manifest(self) -> IndexManifest:
        return read_manifest(self._folder)

    @cached_property
    def _files(self) -> dict[str, Files]:
        return read_files(self._folder, self._manifest)

    @cached_property
    def _splits(self) -> dict[str, NDArray[np.int64]]:
        """Places in the index of train/, of the images that train and of those that validate."""
        labels, held_out = self._files["train"].labels, self.recipe.validation
        fewest = int(np.bincount(labels).min())
        if held_out >= fewest:
            name = self._manifest.classes[int(np.bincount(labels).argmin())]
            raise UserError(
                f"recipe.validation={held_out}: class {name} has {fewest} images in train/, "
                "and one at least must be left to train on"
            )
        shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
        sizes = np.bincount(labels)
        place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        valid = np.zeros(len(labels), dtype=bool)
        valid[by_class[place < held_out]] = True
        return {"train": shuffled[~valid[shuffled]], "valid": np.flatnonzero(valid)}
