"""``knee-tune data prepare cifar10``."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import MANIFEST
from knee_tune.tasks.vision.cifar10.sources import download, read_source
from knee_tune.tasks.vision.images import (
    ImageManifest,
    map_images,
    read_manifest,
    write_images,
)

PUBLISHED = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """What a preparation did: for people and, as it is, for JSON."""

    folder: Path
    name: str
    images: Mapping[str, int]
    """By split."""
    fingerprint: str
    seconds: float
    reused: bool
    """The set was there already."""
    warnings: tuple[str, ...] = ()

    def contents(self) -> str:
        """What is in it, in a few words."""
        return ", ".join(f"{count:,} {split}" for split, count in self.images.items()) + " images"


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str = "cifar10",
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedImages:
    """The prepared set ``<data_root>/<name>``, of what is at ``from_path`` or else downloaded.

    A set that is there already stays, unless ``force``; other images at ``from_path`` need it, or
    another name. UserError for everything wrong with the input; nothing is half-written.
    """
    began = time.monotonic()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"--name {name!r}: letters, digits, '.', '_' and '-' only")
    folder = data_root / name
    origin = PUBLISHED if from_path is None else str(from_path.resolve())

    def prepared(manifest: ImageManifest, *, reused: bool) -> PreparedImages:
        return PreparedImages(
            folder=folder,
            name=name,
            images=manifest.images,
            fingerprint=manifest.fingerprint,
            seconds=time.monotonic() - began,
            reused=reused,
        )

    known = None
    if folder.exists():
        if not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} exists but is no prepared set: remove it or choose --name")
        if not force:
            known = read_manifest(folder, task="cifar10", verify=True)
            if from_path is None:
                return prepared(known, reused=True)
    progress("read images" if from_path else "download", 0.0)
    images = read_source(from_path) if from_path else download(data_root / "downloads")
    if known is not None:
        if map_images(folder, known).same_as(images):
            return prepared(known, reused=True)
        raise UserError(
            f"{folder} was prepared from other images ({known.origin}): choose another --name, "
            "or replace it with --force"
        )
    progress("write images", 0.5)
    manifest = write_images(folder, images, origin=origin)
    progress("write images", 1.0)
    return prepared(manifest, reused=False)
