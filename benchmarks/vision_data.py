"""The images that benchmarks.vision and benchmarks.gpu_step train on."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.vision_reference import Split

if TYPE_CHECKING:
    from knee_tune.tasks.vision.cifar10 import Cifar10Task

TASK = "cifar10"


def splits(task: "Cifar10Task") -> tuple[Split, Split]:
    """The images that the task trains and validates on, as bytes again."""
    from knee_tune.tasks.vision.cifar10 import MEAN, STD
    from knee_tune.workers.group import Group

    def bytes_of(batches: Iterator[Any]) -> Split:
        images, labels = zip(*batches, strict=True)
        pixels = np.concatenate([each.permute(0, 2, 3, 1).numpy() for each in images])
        pixels = (pixels * np.array(STD) + np.array(MEAN)) * 255
        return Split(
            images=pixels.round().clip(0, 255).astype(np.uint8),
            labels=np.concatenate([each.numpy() for each in labels]),
        )

    alone = Group()
    return (
        bytes_of(task.train_examples(alone, limit=None)),
        bytes_of(task.eval_batches("valid", alone)),
    )


def write_noise(data: Path) -> None:
    """A prepared set of random images, a fifth of CIFAR-10's size."""
    from knee_tune.tasks.vision.images import Images, write_images

    draw = np.random.default_rng(1)
    sizes = {"train": 10_000, "test": 2_000}
    pixels = {k: draw.integers(0, 256, (n, 32, 32, 3), np.uint8) for k, n in sizes.items()}
    labels = {k: draw.integers(0, 10, n).astype(np.uint8) for k, n in sizes.items()}
    images = Images(
        train=pixels["train"],
        train_labels=labels["train"],
        test=pixels["test"],
        test_labels=labels["test"],
    )
    write_images(data / TASK, images, origin="random bytes")
