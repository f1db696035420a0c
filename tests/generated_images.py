"""Small sets of images in CIFAR-10's shape, for tests that need no download."""

import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from knee_tune.tasks.vision.cifar10_prepare import BATCHES
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


def put_batches(folder: Path, images: Images) -> Path:
    """The published layout: pickles as Python 2 wrote them, five of them to train on."""
    inner = folder / BATCHES
    inner.mkdir(parents=True)
    parts = {
        f"data_batch_{number}": (pixels, labels)
        for number, pixels, labels in zip(
            range(1, 6), np.split(images.train, 5), np.split(images.train_labels, 5), strict=True
        )
    } | {"test_batch": (images.test, images.test_labels)}
    for name, (pixels, labels) in parts.items():
        rows = pixels.transpose(0, 3, 1, 2).reshape(-1, 3072)
        batch = {b"data": rows, b"labels": labels.tolist()}
        _dump(batch, inner / name)
    _dump({b"label_names": [b"a class"] * 10}, inner / "batches.meta")
    return inner


def _dump(content: Any, path: Path) -> None:
    """Pickle with bytes as Python 2 wrote its strings, which is how the published files are."""
    pickled = bytearray(pickle.dumps(content, protocol=3))
    strings = {"BINBYTES": pickle.BINSTRING, "SHORT_BINBYTES": pickle.SHORT_BINSTRING}
    for opcode, _, position in pickletools.genops(bytes(pickled)):
        if opcode.name in strings and position is not None:
            pickled[position : position + 1] = strings[opcode.name]
    path.write_bytes(pickled)


def put_archive(folder: Path, images: Images) -> Path:
    """The archive that is published; what is in it lies in ``<folder>/unpacked`` too."""
    path = folder / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(put_batches(folder / "unpacked", images), arcname=BATCHES)
    return path
