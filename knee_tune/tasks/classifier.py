"""Tasks that tell classes apart: what the analyses of a minimum can ask of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from knee_tune.workers.group import Group

Examples = tuple[Tensor, Tensor]
"""Inputs (n, ...) as the model takes them, and labels (n,) int64."""


class Classifier(ABC):
    """A task whose model maps inputs to class scores (n, classes).

    Its ``loss(model, (inputs, labels))`` is the summed cross-entropy.
    """

    @abstractmethod
    def train_examples(self, group: Group, *, limit: int | None) -> Iterator[Examples]:
        """This rank's part of the training split's first ``limit`` examples, on ``group.device``.

        As they are trained on (noisy labels stay noisy), but not augmented; always the same, in
        the same order, in batches of a size that fits the device.
        """
