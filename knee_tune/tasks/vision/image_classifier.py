"""Scores, evaluation and prediction that the tasks on images share."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.config.recipe import Recipe
from knee_tune.tasks.base import Classifier, Examples, Split, Task
from knee_tune.workers.group import Group

T = TypeVar("T", bound=Recipe)


class ImageClassifier(Classifier, Task[T]):
    """Images (n, 3, height, width) float32, channels last in memory, and labels (n,) int64."""

    same_shapes = True

    @abstractmethod
    def eval_batches(self, split: Split, group: Group) -> Iterator[Examples]:
        """This rank's part of ``split``, on ``group.device``, with nothing augmented."""

    def score(self, scores: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Sums of the recipe's metrics over a batch of class scores (n, classes)."""
        return {
            "loss": F.cross_entropy(scores, labels, reduction="sum"),
            "accuracy": 100 * (scores.argmax(1) == labels).sum(),
        }

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """The mean of every metric over the split; waits for the device once, at the end."""
        names = [metric.name for metric in self.recipe.metrics]
        totals = torch.zeros(len(names), dtype=torch.float64, device=group.device)
        count = 0
        for images, labels in self.eval_batches(split, group):
            sums = self.score(model(images), labels)
            totals += torch.stack([sums[name].double() for name in names])
            count += len(labels)
            group.alive()
        *values, examples = group.sum([*totals.tolist(), count])
        return dict(zip(names, (value / examples for value in values), strict=True))


def class_scores(
    model: nn.Module, pixels: Tensor, normalised: Callable[[Tensor], Tensor], *, together: int
) -> NDArray[np.float32]:
    """Class scores (n, classes), on the CPU, of ``pixels`` (n, height, width, 3) uint8.

    So many images ``together`` are moved to the model's device, ``normalised`` there and scored.
    """
    device = next(model.parameters()).device
    parts = torch.split(pixels, together)
    scores = [model(normalised(some.to(device))).cpu() for some in parts]
    answers: NDArray[np.float32] = torch.cat(scores).float().numpy()
    return answers


Colour = tuple[float, float, float]
"""Red, green and blue, 1 at their fullest."""


def normalise(pixels: Tensor, *, mean: Colour, std: Colour) -> Tensor:
    """Images (n, h, w, 3) uint8 as (n, 3, h, w) float32, channels last in memory."""
    n, height, width, _ = pixels.shape
    # Whole rows at a time: to repeat three numbers along the last dimension is slow on a CPU.
    rows = pixels.float().reshape(n, height, 3 * width)
    rows.sub_(_row(mean, width, rows.device)).div_(_row(std, width, rows.device))
    return rows.view(n, height, width, 3).permute(0, 3, 1, 2)


@cache
def _row(colour: Colour, width: int, device: torch.device) -> Tensor:
    """A row of pixels of one colour, (3 * width,) from 0 to 255; copied to a device once."""
    return torch.tensor(colour, device=device).mul(255).repeat(width)
