"""Small sets of images in CIFAR-10's shape, for tests that need no download."""

from pathlib import Path

import numpy as np

from knee_tune.tasks.vision.images import Images, write_images


def generated_images(*, train: int = 160, test: int = 40, seed: int = 0) -> Images:
    """Noise around one colour per class."""
    draw = np.random.default_rng(seed)
    colours = np.random.default_rng(99).integers(40, 216, size=(10, 1, 1, 3))
    labels = draw.integers(10, size=train + test, dtype=np.uint8)
    noise = draw.normal(scale=20, size=(train + test, 32, 32, 3))
    pixels = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    return Images(
        train=pixels[:train],
        train_labels=labels[:train],
        test=pixels[train:],
        test_labels=labels[train:],
    )


def put_cifar10(data_dir: Path, *, seed: int = 0) -> None:
    """Prepare a generated set of 160 + 40 images under the name ``cifar10``."""
    write_images(data_dir / "cifar10", generated_images(seed=seed), origin="generated")
