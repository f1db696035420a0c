"""scikit-learn's handwritten digits: needs nothing, and shows how a task is written."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from knee_tune.tasks.digits.recipe import DigitsRecipe
from knee_tune.tasks.tabular.classifier import TabularTask

SIDE = 8


class DigitsTask(TabularTask[DigitsRecipe]):
    """Images of 64 pixels, 0..16, row by row, as scikit-learn has them; the model sees [0, 1]."""

    classes = 10
    splits: ClassVar[Mapping[str, slice]] = {
        "train": slice(0, 800),
        "valid": slice(800, 1700),
        "test": slice(1700, None),
    }
    split_seed = 1797

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """All 1,797 images and the digits on them."""
        images, labels = load_digits(return_X_y=True)
        return images, labels

    def scaled(self, rows: Tensor) -> Tensor:
        """Every pixel in [0, 1]."""
        return rows / 16

    def views(self, rows: Tensor) -> Tensor:
        """Every shifted version of the images, (shifts, n, 64)."""
        reach = self.recipe.shift
        padded = F.pad(rows.view(-1, SIDE, SIDE), (reach,) * 4)
        offsets = range(2 * reach + 1)
        shifted = [
            padded[:, top : top + SIDE, left : left + SIDE].reshape(-1, SIDE * SIDE)
            for top in offsets
            for left in offsets
        ]
        return torch.stack(shifted)
