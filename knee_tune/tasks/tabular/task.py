"""Tasks on scikit-learn's small tables, which need no preparation: the shortest ones to read."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.tasks.base import Classifier, Examples, FusableTask, Split
from knee_tune.tasks.seeding import epochs_after, generator, noisy_labels
from knee_tune.tasks.tabular.recipe import BreastCancerRecipe, DigitsRecipe, TabularRecipe
from knee_tune.workers.group import Group

T = TypeVar("T", bound=TabularRecipe)


class TabularTask(Classifier, FusableTask[T]):
    """Classification of the rows of a table with a multilayer perceptron, all rows in memory.

    One fixed shuffle cuts the table into ``splits``; the study's seed never moves a row from one to
    another. The seed decides which training labels are replaced, and the order of the rows.
    """

    same_shapes = True
    classes: ClassVar[int]
    splits: ClassVar[Mapping[str, slice]]
    """``train``, ``valid`` and ``test``, of the shuffled rows."""
    split_seed: ClassVar[int]

    @abstractmethod
    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows (n, features) in their own units and labels (n,), counted from 0."""

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows in their own units as the model sees them: standardised as the training rows are."""
        train, _ = self._raw["train"]
        return (rows - train.mean(0)) / train.std(0)

    def views(self, rows: Tensor) -> Tensor:
        """Augmented versions of scaled training rows, (versions, n, f), to draw from."""
        return rows[None]

    def with_seed(self, seed: int) -> Self:
        """The same task with another random seed; they share the rows."""
        other = super().with_seed(seed)
        other._raw, other._scaled, other._views = self._raw, self._scaled, self._views
        return other

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint of rows and labels, and the sizes of the splits."""
        digest = hashlib.sha256()
        for split in self.splits:
            for tensor in self._scaled[split]:
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16], {name: len(y) for name, (_, y) in self._scaled.items()}

    def steps_per_epoch(self, group: Group) -> int:
        """Number of whole batches, the same for every world size."""
        return len(self._scaled["train"][1]) // self.recipe.batch_size

    def build_model(self) -> nn.Module:
        """A multilayer perceptron: (n, features) -> (n, classes) class scores."""
        widths = [self._scaled["train"][0].shape[1], *self.recipe.model.hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            if self.recipe.model.dropout:
                layers.append(nn.Dropout(self.recipe.model.dropout))
        return nn.Sequential(*layers, nn.Linear(widths[-1], self.classes))

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Examples]]:
        """This rank's part of every batch, cut into micro-batches."""
        views, labels = self._views.to(group.device), self._noisy_labels.to(group.device)
        batch = self.recipe.batch_size
        for epoch, left in epochs_after(start_step, self.steps_per_epoch(group)):
            draw = generator(self.seed, "order", epoch)
            order = torch.randperm(len(labels), generator=draw).to(group.device)
            view = torch.randint(len(views), (len(labels),), generator=draw).to(group.device)
            # A whole epoch in one gather: steps only cut it. Of many replicas on a GPU, a gather
            # for each of them would take longer than their step.
            inputs, targets = views[view, order], labels[order]
            for step in left:
                mine = slice(step * batch + group.rank, (step + 1) * batch, group.world_size)
                yield list(
                    zip(
                        inputs[mine].tensor_split(self.recipe.accumulate),
                        targets[mine].tensor_split(self.recipe.accumulate),
                        strict=True,
                    )
                )

    def train_examples(self, group: Group, *, limit: int | None) -> Iterator[Examples]:
        """One batch: scaled rows, not augmented, with the seed's noisy labels."""
        rows, _ = self._scaled["train"]
        mine = slice(group.rank, limit, group.world_size)
        yield rows[mine].to(group.device), self._noisy_labels[mine].to(group.device)

    def eval_batches(self, split: Split, group: Group) -> Iterator[Examples]:
        """One batch, with the true labels and nothing augmented."""
        rows, labels = self._scaled[split]
        mine = slice(group.rank, None, group.world_size)
        yield rows[mine].to(group.device), labels[mine].to(group.device)

    def score(self, model: nn.Module, batch: Examples) -> tuple[Mapping[str, Tensor], float]:
        """Summed cross-entropy, and accuracy in percent."""
        rows, labels = batch
        scores = model(rows)
        loss = F.cross_entropy(scores, labels, reduction="sum")
        right = (scores.argmax(1) == labels).sum()
        return {"loss": loss, "accuracy": 100 * right}, len(labels)

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[int]:
        """The class of each row, which is in its own units."""
        rows = torch.as_tensor(np.asarray(inputs, dtype=np.float32))
        rows = self.scaled(rows.reshape(-1, self._raw["train"][0].shape[1]))
        return [int(one) for one in model(rows.to(next(model.parameters()).device)).argmax(1)]

    def examples(self) -> list[list[float]]:
        """Two rows of the test split, in their own units."""
        return [[float(value) for value in row] for row in self._raw["test"][0][:2]]

    @cached_property
    def _raw(self) -> dict[str, Examples]:
        rows, labels = self.read()
        order = np.random.default_rng(self.split_seed).permutation(len(labels))
        x = torch.from_numpy(rows.astype(np.float32)[order])
        y = torch.from_numpy(labels.astype(np.int64)[order])
        return {name: (x[mine], y[mine]) for name, mine in self.splits.items()}

    @cached_property
    def _scaled(self) -> dict[str, Examples]:
        return {name: (self.scaled(rows), labels) for name, (rows, labels) in self._raw.items()}

    @cached_property
    def _views(self) -> Tensor:
        return self.views(self._scaled["train"][0])

    @cached_property
    def _noisy_labels(self) -> Tensor:
        _, labels = self._scaled["train"]
        share = self.recipe.label_noise
        return noisy_labels(labels, share=share, classes=self.classes, seed=self.seed)


SIDE = 8
"""Pixels of a digit's image, across and down."""


class DigitsTask(TabularTask[DigitsRecipe]):
    """Images of 64 pixels, 0 to 16, row by row, as scikit-learn has them; the model sees [0, 1]."""

    classes = 10
    splits: ClassVar[Mapping[str, slice]] = {
        "train": slice(0, 800),
        "valid": slice(800, 1700),
        "test": slice(1700, None),
    }
    split_seed = 1797

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read all 1,797 images and their digits."""
        images, labels = load_digits(return_X_y=True)
        return images, labels

    def scaled(self, rows: Tensor) -> Tensor:
        """Pixels in [0, 1]."""
        return rows / 16

    def views(self, rows: Tensor) -> Tensor:
        """Shifted versions of the images, (shifts, n, 64)."""
        reach = self.recipe.shift
        padded = F.pad(rows.view(-1, SIDE, SIDE), (reach,) * 4)
        offsets = range(2 * reach + 1)
        shifted = [
            padded[:, top : top + SIDE, left : left + SIDE].reshape(-1, SIDE * SIDE)
            for top in offsets
            for left in offsets
        ]
        return torch.stack(shifted)


class BreastCancerTask(TabularTask[BreastCancerRecipe]):
    """30 features of cell nuclei, standardised; 0 is malignant, 1 benign."""

    classes = 2
    splits: ClassVar[Mapping[str, slice]] = {
        "train": slice(0, 288),
        "valid": slice(288, 459),
        "test": slice(459, None),
    }
    split_seed = 569

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read all 569 cases."""
        features, labels = load_breast_cancer(return_X_y=True)
        return features, labels
