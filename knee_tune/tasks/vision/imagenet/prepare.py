"""``knee-tune data prepare imagenet``: an index of the folder; no image is copied."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from knee_tune.errors import UserError, first_line
from knee_tune.tasks.prepared_folder import new_folder, set_folder
from knee_tune.tasks.vision.imagenet.index import (
    FOLDERS,
    FORMATS,
    IndexManifest,
    Listing,
    list_images,
    read_manifest,
    write_index,
)
from knee_tune.tasks.vision.prepared import PreparedImages

_AT_ONCE = 32
"""Headers read at the same time: it is the file system that takes its time."""


@dataclass(frozen=True, kw_only=True)
class PreparedIndex(PreparedImages):
    """An index was prepared: of the images below ``root``, by folder ("train" and "val")."""

    root: Path
    classes: int

    def contents(self) -> str:
        """What is in it, in a few words."""
        return f"{super().contents()} of {self.classes:,} classes in {self.root}"


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str = "imagenet",
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedIndex:
    """The index ``<data_root>/<name>`` of the images below ``from_path``, which stay there.

    Every image's header is read. An index of the same files stays; another one needs ``force``.
    UserError, naming the file, for everything wrong with the images; nothing is half-written.
    """
    began = time.monotonic()
    if from_path is None:
        raise UserError(
            "data prepare imagenet: ImageNet is given out to registered people only "
            "(image-net.org); name the folder that has train/ and val/ with --from DIR"
        )
    root = from_path.resolve()
    if root.is_relative_to((data_root / name).resolve()):
        raise UserError(
            f"--from {from_path}: the index is to be written to {data_root / name}; "
            "choose another --name, or move the images"
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
                "another --name, or replace it with --force"
            )
        return prepared(manifest, reused=True)
    _check_headers(listing, root, progress)
    with new_folder(folder) as partial:
        manifest = write_index(partial, listing, name=name, root=root)
    return prepared(manifest, reused=False)


def _check_headers(listing: Listing, root: Path, progress: Callable[[str, float], None]) -> None:
    """UserError for the first file that does not begin as an image does."""
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
    """What is wrong with an image file, as far as its header tells; empty: nothing."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return "" if min(image.size) > 0 else f"{path}: no pixels in it"
    except Exception as error:  # there is no end to what damaged bytes lead to
        return f"{path}: no readable image ({first_line(error)[:200]})"
