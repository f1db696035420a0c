"""scikit-learn's handwritten digits: needs nothing, and shows how a task is written."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.distributed.group import Group
from knee_tune.tasks.base import Split
from knee_tune.tasks.digits.recipe import DigitsRecipe
from knee_tune.tasks.fusable import FusableTask
from knee_tune.tasks.seeding import generator

SIDE = 8
CLASSES = 10
SPLITS = {"train": slice(0, 800), "valid": slice(800, 1700), "test": slice(1700, None)}
SPLIT_SEED = 1797
"""One fixed shuffle cuts the data; the study's seed never moves an image between splits."""

Examples = tuple[Tensor, Tensor]


class DigitsTask(FusableTask[DigitsRecipe]):
    """Images (n, 64) float32 in [0, 1] and labels (n,) int64."""

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint of images and labels, and the sizes of the splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for tensor in self._splits[split]:
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16], {name: len(y) for name, (_, y) in self._splits.items()}

    def steps_per_epoch(self, group: Group) -> int:
        """Whole batches only, whatever the world size."""
        return len(self._splits["train"][1]) // self.recipe.batch_size

    def build_model(self) -> nn.Module:
        """A multilayer perceptron: (n, 64) -> (n, 10) class scores."""
        widths = [SIDE * SIDE, *self.recipe.model.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            if self.recipe.model.dropout:
                layers.append(nn.Dropout(self.recipe.model.dropout))
        return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Examples]]:
        """This rank's part of every batch, cut into micro-batches."""
        shifted, labels = (tensor.to(group.device) for tensor in self._noisy_train)
        steps = self.steps_per_epoch(group)
        batch = self.recipe.batch_size
        for epoch in count(start_step // steps):
            draw = generator(self.seed, "order", epoch)
            order = torch.randperm(len(labels), generator=draw)
            shift = torch.randint(len(shifted), (len(labels),), generator=draw)
            first = start_step % steps if epoch == start_step // steps else 0
            for step in range(first, steps):
                mine = slice(step * batch + group.rank, (step + 1) * batch, group.world_size)
                rows, shifts = order[mine].to(group.device), shift[mine].to(group.device)
                images, targets = shifted[shifts, rows], labels[rows]
                yield list(
                    zip(
                        images.tensor_split(self.recipe.accumulate),
                        targets.tensor_split(self.recipe.accumulate),
                        strict=True,
                    )
                )

    def loss(self, model: nn.Module, batch: Examples) -> tuple[Tensor, float]:
        """Summed cross-entropy and the number of examples."""
        images, labels = batch
        return F.cross_entropy(model(images), labels, reduction="sum"), len(labels)

    def eval_batches(self, split: Split, group: Group) -> Iterator[Examples]:
        """All of it at once, clean and unshifted."""
        images, labels = self._splits[split]
        mine = slice(group.rank, None, group.world_size)
        yield images[mine].to(group.device), labels[mine].to(group.device)

    def score(self, model: nn.Module, batch: Examples) -> tuple[Mapping[str, Tensor], float]:
        """Summed cross-entropy, and accuracy in percent."""
        images, labels = batch
        scores = model(images)
        loss = F.cross_entropy(scores, labels, reduction="sum")
        right = (scores.argmax(1) == labels).sum()
        return {"loss": loss, "accuracy": 100 * right}, len(labels)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[int]:
        """The digit on each image: 64 pixel values 0..16, row by row, as scikit-learn has them."""
        pixels = torch.as_tensor(np.asarray(inputs, dtype=np.float32)).reshape(-1, SIDE * SIDE)
        pixels = pixels.to(next(model.parameters()).device)
        return [int(digit) for digit in model(pixels / 16).argmax(1).tolist()]

    def examples(self) -> list[list[float]]:
        """Two images of the test split, in scikit-learn's units."""
        return [[float(value) for value in row * 16] for row in self._splits["test"][0][:2]]

    @cached_property
    def _splits(self) -> dict[str, Examples]:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
        x = torch.from_numpy((images / 16).astype(np.float32)[order])
        y = torch.from_numpy(labels.astype(np.int64)[order])
        return {name: (x[rows], y[rows]) for name, rows in SPLITS.items()}

    @cached_property
    def _noisy_train(self) -> Examples:
        """Every shifted version of the training images, (shifts, n, 64), and noisy labels (n,)."""
        images, labels = self._splits["train"]
        draw = generator(self.seed, "label noise")
        noisy = torch.rand(len(labels), generator=draw) < self.recipe.label_noise
        random = torch.randint(CLASSES, (len(labels),), generator=draw)
        reach = self.recipe.shift
        padded = F.pad(images.view(-1, SIDE, SIDE), (reach,) * 4)
        offsets = range(2 * reach + 1)
        shifted = [
            padded[:, top : top + SIDE, left : left + SIDE].reshape(-1, SIDE * SIDE)
            for top in offsets
            for left in offsets
        ]
        return torch.stack(shifted), torch.where(noisy, random, labels)
