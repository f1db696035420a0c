"""The index of a folder of images: which there are, of which class, and how large the files are.

The images stay where they are (ImageNet has 150 GB of them): ``<data>/<name>/`` holds the index
alone, ``{index.npz, manifest.json}``.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knee_tune.config.recipe import Spec
from knee_tune.errors import UserError
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.prepared_folder import FileRecord, check_files, record_files, write_manifest

INDEX = "index.npz"

FOLDERS = ("train", "val")

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for images."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Of such files, as Pillow calls them; it knows some for which it would call other programs."""

_LAYOUT = "the layout is train/<class>/*.JPEG and val/<class>/*.JPEG"
_LOOKED_AT = 1000


@dataclass(frozen=True, kw_only=True)
class Files:
    """The images of one folder, sorted by class and name."""

    names: NDArray[np.bytes_]
    """(n,), ``<class>/<file>``."""
    labels: NDArray[np.int32]
    """(n,), counted from 0 in the order of the classes."""
    sizes: NDArray[np.int64]
    """(n,), bytes."""

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, root: Path, index: int) -> Path:
        """Where the image lies below ``root``, its train/ or val/ folder."""
        return root / os.fsdecode(self.names[index])


class IndexManifest(Spec):
    """What an index lists and where those images are."""

    format: int = 1
    name: str
    root: Path
    """The folder with ``train/`` and ``val/``."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted."""
    images: dict[str, int]
    """By folder: "train" and "val"."""
    files: dict[str, FileRecord]
    fingerprint: str
    """Changes with every name, class and file size; independent of where the folder lies."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a folder of images holds."""

    classes: tuple[str, ...]
    folders: Mapping[str, Files]

    def fingerprint(self) -> str:
        """See :class:`IndexManifest`."""
        digest = sha256("/".join(self.classes).encode())
        for name in FOLDERS:
            files = self.folders[name]
            digest.update(b"\0".join([name.encode(), *files.names.tolist()]))
            digest.update(files.labels.astype("<i4").tobytes())
            digest.update(files.sizes.astype("<i8").tobytes())
        return digest.hexdigest()


def list_images(root: Path) -> Listing:
    """The images below ``root``; opens none. UserError if this is no such folder of images."""
    for folder in FOLDERS:
        if not (root / folder).is_dir():
            raise UserError(f"--from {root}: no folder {folder}/ in it; {_LAYOUT}")
    classes = tuple(sorted(_class_folders(root / "train")))
    if len(classes) < 2:
        raise UserError(f"--from {root}: train/ has {len(classes)} class folders; {_LAYOUT}")
    for name in _class_folders(root / "val"):
        if name not in classes:
            raise UserError(f"--from {root}: val/{name} is no class of train/; remove or rename it")
    return Listing(
        classes=classes,
        folders={folder: _files(root / folder, classes) for folder in FOLDERS},
    )


def write_index(folder: Path, listing: Listing, *, name: str, root: Path) -> IndexManifest:
    """Write the index into the new ``folder``, the manifest last."""
    arrays = {
        f"{split}_{part}": getattr(files, part)
        for split, files in listing.folders.items()
        for part in ("names", "labels", "sizes")
    }
    np.savez_compressed(folder / INDEX, **arrays)
    files, _ = record_files(folder)
    manifest = IndexManifest(
        name=name,
        root=root.resolve(),
        classes=listing.classes,
        images={split: len(each) for split, each in listing.folders.items()},
        files=files,
        fingerprint=listing.fingerprint(),
    )
    write_manifest(folder, manifest)
    return manifest


def read_manifest(folder: Path) -> IndexManifest:
    """The manifest of the index in ``folder``; UserError if there is none, or no sound one."""
    missing = (
        f"recipe.data={folder.name}: no index of images in {folder}; run 'knee-tune data "
        "prepare imagenet --from DIR' with the folder that has train/ and val/"
    )
    return prepared_folder.read_manifest(folder, IndexManifest, missing=missing, again=_AGAIN)


def read_files(folder: Path, manifest: IndexManifest) -> dict[str, Files]:
    """The index in ``folder``; UserError if it is missing or not as it was written."""
    check_files(folder, manifest.files, again=_AGAIN)
    with np.load(folder / INDEX) as arrays:
        return {
            split: Files(
                names=arrays[f"{split}_names"],
                labels=arrays[f"{split}_labels"],
                sizes=arrays[f"{split}_sizes"],
            )
            for split in FOLDERS
        }


def look_at(manifest: IndexManifest, folders: Mapping[str, Files]) -> None:
    """Check a thousand files of every folder, evenly spread; UserError if one is not as indexed.

    Looking at all of ImageNet's takes minutes on a network file system.
    """
    for split, files in folders.items():
        for index in range(0, len(files), max(1, len(files) // _LOOKED_AT)):
            path = files.path(manifest.root / split, index)
            try:
                size = path.stat().st_size
            except OSError:
                size = -1
            if size != files.sizes[index]:
                raise UserError(f"{path}: missing or changed since it was indexed; {_AGAIN}")


_AGAIN = "run 'knee-tune data prepare imagenet --from DIR --force'"


def _class_folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (each.name for each in entries if each.is_dir() and each.name[0] != ".")


def _files(folder: Path, classes: tuple[str, ...]) -> Files:
    names: list[bytes] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(folder / name))
        if not found:
            raise UserError(f"--from {folder.parent}: no images in {folder.name}/{name}; {_LAYOUT}")
        names += [os.fsencode(f"{name}/{file}") for file, _ in found]
        labels += [label] * len(found)
        sizes += [size for _, size in found]
    return Files(
        names=np.array(names),
        labels=np.array(labels, dtype=np.int32),
        sizes=np.array(sizes, dtype=np.int64),
    )


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and size of every image in a class folder, which may be missing."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for each in entries:
            if each.name[0] != "." and each.name.lower().endswith(_SUFFIXES):
                yield each.name, each.stat().st_size
