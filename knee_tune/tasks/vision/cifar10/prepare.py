"""``knee-tune data prepare cifar10``."""

import time
from collections.abc import Callable
from pathlib import Path

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import set_folder
from knee_tune.tasks.vision.cifar10.sources import download, read_source
from knee_tune.tasks.vision.images import ImageManifest, map_images, read_manifest, write_images
from knee_tune.tasks.vision.prepared import PreparedImages

PUBLISHED = "https://www.cs.toronto.edu/~kriz/cifar.html"


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
    folder = set_folder(data_root, name)
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
    if folder.exists() and not force:
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
