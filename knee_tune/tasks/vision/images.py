"""A prepared set of small images: one uint8 file, mapped into memory, and a manifest.

``<data>/<name>/{images.npy, labels.npy, manifest.json}``: all images (n, side, side, 3) and labels
(n,), the training images first, in the order they were published in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knee_tune.tasks import prepared_folder
from knee_tune.tasks.prepared_folder import (
    PreparedSet,
    SetManifest,
    check_files,
    new_folder,
    record_files,
    write_manifest,
)

IMAGES, LABELS = "images.npy", "labels.npy"

Pixels = NDArray[np.uint8]
"""Images (n, side, side, 3), red first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Training and test images, labels (n,) uint8 counted from 0."""

    train: Pixels
    train_labels: NDArray[np.uint8]
    test: Pixels
    test_labels: NDArray[np.uint8]

    def same_as(self, other: "Images") -> bool:
        """Compare all images and labels."""
        names = [field.name for field in fields(self)]
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


class ImageManifest(SetManifest):
    """Contents and origin of a prepared set of images."""

    images: dict[str, int]
    """By split: "train" and "test"."""


def write_images(folder: Path, images: Images, *, origin: str) -> ImageManifest:
    """Make ``folder`` the prepared set of these images; it appears whole or not at all."""
    with new_folder(folder) as partial:
        pixels = np.lib.format.open_memmap(
            partial / IMAGES,
            mode="w+",
            dtype=np.uint8,
            shape=(len(images.train) + len(images.test), *images.train.shape[1:]),
        )
        pixels[: len(images.train)] = images.train
        pixels[len(images.train) :] = images.test
        pixels.flush()
        np.save(partial / LABELS, np.concatenate([images.train_labels, images.test_labels]))
        files, fingerprint = record_files(partial)
        manifest = ImageManifest(
            name=folder.name,
            origin=origin,
            images={"train": len(images.train), "test": len(images.test)},
            files=files,
            fingerprint=fingerprint,
        )
        write_manifest(partial, manifest)
    return manifest


def read_manifest(folder: Path, *, task: str, verify: bool = False) -> ImageManifest:
    """The manifest of the set in ``folder``; UserError if there is no finished set.

    ``verify`` looks at the files too: UserError if one is missing or not as it was prepared.
    """
    again = f"run 'knee-tune data prepare {task} ... --force'"
    missing = (
        f"recipe.data={folder.name}: no prepared images in {folder}; run 'knee-tune data "
        f"prepare {task}', which downloads them, or with `from_path` FILE.npz|DIR where there is "
        "no network"
    )
    manifest = prepared_folder.read_manifest(folder, ImageManifest, missing=missing, again=again)
    if verify:
        check_files(folder, manifest.files, again=again)
    return manifest


def map_images(folder: Path, manifest: ImageManifest) -> Images:
    """The images of a set, read from disk where they are touched."""
    pixels, labels = (np.load(folder / name, mmap_mode="r") for name in (IMAGES, LABELS))
    cut = manifest.images["train"]
    return Images(
        train=pixels[:cut], train_labels=labels[:cut], test=pixels[cut:], test_labels=labels[cut:]
    )


@dataclass(frozen=True, kw_only=True)
class PreparedImages(PreparedSet):
    """A preparation of images, counted by split or by folder."""

    images: Mapping[str, int]

    def contents(self) -> str:
        """Sizes of the set, in a few words."""
        return ", ".join(f"{count:,} {part}" for part, count in self.images.items()) + " images"
