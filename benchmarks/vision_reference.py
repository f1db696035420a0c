"""The loop that people commonly train CIFAR-10 with: what our task's speed is compared with.

PIL images through torchvision's transforms in the workers of a DataLoader, float32, torch.optim.SGD
as it comes, the loss read at every step, an evaluation after every epoch.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from knee_tune.tasks.vision.cifar10 import MEAN, STD
from knee_tune.tasks.vision.models import build_network
from knee_tune.tasks.vision.recipe import NetworkChoice


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images (n, side, side, 3) uint8 and labels (n,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlainRun:
    """What the loop is to train."""

    network: NetworkChoice
    batch_size: int
    padding: int
    lr: float
    momentum: float
    weight_decay: float
    epochs: int
    device: str
    workers: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The end of one epoch."""

    seconds: float
    """Since the first one began."""
    accuracy: float
    """On the validation images, in percent."""


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's CIFAR10 gives them."""

    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self._split, self._transform = split, transform

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self._split.images[index])
        return self._transform(image), int(self._split.labels[index])


def train(run: PlainRun, train_split: Split, valid_split: Split) -> Iterator[Epoch]:
    """Train, and tell of every epoch when it is evaluated."""
    torch.manual_seed(run.seed)
    device = torch.device(run.device)
    as_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    side = train_split.images.shape[1]
    augmented = [transforms.RandomCrop(side, run.padding), transforms.RandomHorizontalFlip()]
    batches, held_out = (
        DataLoader(
            PilImages(split, transforms.Compose(steps)),
            batch_size=run.batch_size,
            shuffle=shuffled,
            drop_last=shuffled,
            num_workers=run.workers,
            pin_memory=device.type == "cuda",
            persistent_workers=run.workers > 0,
        )
        for split, steps, shuffled in (
            (train_split, [*augmented, *as_tensor], True),
            (valid_split, as_tensor, False),
        )
    )
    model = build_network(run.network, classes=10).to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=run.lr, momentum=run.momentum, weight_decay=run.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.epochs)
    began = time.perf_counter()
    for _ in range(run.epochs):
        model.train()
        total = 0.0
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        scheduler.step()
        accuracy = _accuracy(model, held_out, device)
        yield Epoch(seconds=time.perf_counter() - began, accuracy=accuracy)


@torch.no_grad()
def _accuracy(
    model: nn.Module, batches: DataLoader[tuple[Tensor, int]], device: torch.device
) -> float:
    model.eval()
    right = count = 0
    for images, labels in batches:
        found = model(images.to(device)).argmax(1)
        right += int((found == labels.to(device)).sum().item())
        count += len(labels)
    return 100 * right / count
