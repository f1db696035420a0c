"""``knee-tune data prepare imagenet``: the index of a folder of images, made and read.

The images stay where they are (ImageNet has 150 GB of them): ``<data>/<name>/`` holds the index
alone, ``{index.npz, manifest.json}``.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knee_tune.config.recipe import Spec
from knee_tune.errors import UserError, first_line
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.prepared_folder import (
    FileRecord,
    check_files,
    new_folder,
    record_files,
    set_folder,
    write_manifest,
)
from knee_tune.tasks.vision.images import PreparedImages

INDEX = "index.npz"

FOLDERS = ("train", "val")

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
"""What torchvision's ImageFolder takes for images."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Of such files, as Pillow calls them; it knows some for which it would call other programs."""

_AGAIN = "run 'knee-tune data prepare imagenet --from DIR --force'"
_LAYOUT = "the layout is train/<class>/*.JPEG and val/<class>/*.JPEG"
_LOOKED_AT = 1000

_AT_ONCE = 32
"""Headers read at the same time: it is the file system that takes its time."""


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
        """Path of the image below ``root``, its train/ or val/ folder."""
        return root / os.fsdecode(self.names[index])


class IndexManifest(Spec):
    """Contents of an index, and the folder of its images."""

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
    """Images of a folder, by class."""

    classes: tuple[str, ...]
    folders: Mapping[str, Files]

    def fingerprint(self) -> str:
        """Digest of all names, classes and file sizes."""
        digest = sha256("/".join(self.classes).encode())
        for name in FOLDERS:
            files = self.folders[name]
            digest.update(b"\0".join([name.encode(), *files.names.tolist()]))
            digest.update(files.labels.astype("<i4").tobytes())
            digest.update(files.sizes.astype("<i8").tobytes())
        return digest.hexdigest()


def list_images(root: Path) -> Listing:
    """List the images below ``root``; opens none. UserError if this is no such folder of images."""
    for folder in FOLDERS:
        if not (root / folder).is_dir():
            raise UserError(f"`from_path` {root}: no folder {folder}/ in it; {_LAYOUT}")
    classes = tuple(sorted(_class_folders(root / "train")))
    if len(classes) < 2:
        raise UserError(f"`from_path` {root}: train/ has {len(classes)} class folders; {_LAYOUT}")
    for name in _class_folders(root / "val"):
        if name not in classes:
            raise UserError(
                f"`from_path` {root}: val/{name} is no class of train/; remove or rename it"
            )
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
    """Read the manifest of the index in ``folder``; UserError if there is none, or no sound one."""
    missing = (
        f"recipe.data={folder.name}: no index of images in {folder}; run 'knee-tune data "
        "prepare imagenet --from DIR' with the folder that has train/ and val/"
    )
    return prepared_folder.read_manifest(folder, IndexManifest, missing=missing, again=_AGAIN)


def read_files(folder: Path, manifest: IndexManifest) -> dict[str, Files]:
    """Read the index in ``folder``; UserError if it is missing or not as it was written."""
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
            raise UserError(
                f"`from_path` {folder.parent}: no images in {folder.name}/{name}; {_LAYOUT}"
            )
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


@dataclass(frozen=True, kw_only=True)
class PreparedIndex(PreparedImages):
    """A preparation of an index of the images below ``root``, counted by folder."""

    root: Path
    classes: int

    def contents(self) -> str:
        """Sizes of the set, in a few words."""
        return f"{super().contents()} of {self.classes:,} classes in {self.root}"


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str = "imagenet",
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedIndex:
    """Write the index ``<data_root>/<name>`` of the images below ``from_path``, which stay there.

    Every image's header is read. An index of the same files stays; another one needs ``force``.
    UserError, naming the file, for everything wrong with the images; nothing is half-written.
    """
    began = time.monotonic()
    if from_path is None:
        raise UserError(
            "data prepare imagenet: ImageNet is given out to registered people only "
            "(image-net.org); name the folder that has train/ and val/ with `from_path` DIR"
        )
    root = from_path.resolve()
    if root.is_relative_to((data_root / name).resolve()):
        raise UserError(
            f"`from_path` {from_path}: the index is to be written to {data_root / name}; "
            "choose another `name`, or move the images"
        )
    folder = set_folder(data_root, name)

    def prepared(manifest: IndexManifest, *, reused: bool) -> PreparedIndex:
        return PreparedIndex(
            folder=folder,
            name=name,
            root=manifest.root,
            classes=len(manifest.classes),
            images=manifest.images,
            fingerprint=manifest.fingerprint,
            seconds=time.monotonic() - began,
            reused=reused,
        )

    progress("list images", 0.0)
    listing = list_images(root)
    if folder.exists() and not force:
        manifest = read_manifest(folder)
        if (manifest.root, manifest.fingerprint) != (root, listing.fingerprint()):
            raise UserError(
                f"{folder} was prepared from {manifest.root} or from other files in it: choose "
                "another `name`, or replace it with `force`"
            )
        return prepared(manifest, reused=True)
    _check_headers(listing, root, progress)
    with new_folder(folder) as partial:
        manifest = write_index(partial, listing, name=name, root=root)
    return prepared(manifest, reused=False)


def _check_headers(listing: Listing, root: Path, progress: Callable[[str, float], None]) -> None:
    """Read every header; UserError for the first file that does not begin as an image does."""
    paths = list(_paths(listing, root))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for begin in range(0, len(paths), 1000):
            progress("read headers", begin / len(paths))
            for problem in pool.map(_problem, paths[begin : begin + 1000]):
                if problem:
                    raise UserError(f"{problem}; fetch the file again, or remove it")
    progress("read headers", 1.0)


def _paths(listing: Listing, root: Path) -> Iterator[Path]:
    for split in FOLDERS:
        files = listing.folders[split]
        yield from (files.path(root / split, index) for index in range(len(files)))


def _problem(path: Path) -> str:
    """Problem of an image file, as far as its header tells; empty: none."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return "" if min(image.size) > 0 else f"{path}: no pixels in it"
    except Exception as error:  # there is no end to what damaged bytes lead to
        return f"{path}: no readable image ({first_line(error)[:200]})"
