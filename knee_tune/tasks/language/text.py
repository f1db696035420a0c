"""``knee-tune data prepare gpt``: any text as one file of bytes, with a manifest.

``<data>/<name>/{text, manifest.json}``. What trains, validates and tests is cut by position: the
first 90 %, the next 5 %, the last 5 %.
"""

import bz2
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from knee_tune.errors import UserError
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.language.recipe import DEFAULT_TEXT
from knee_tune.tasks.prepared_folder import (
    PreparedSet,
    SetManifest,
    check_files,
    new_folder,
    prepare_once,
    record_files,
    set_folder,
    write_manifest,
)

EMBEDDED = Path(__file__).with_name("persuasion.txt.bz2")
"""Jane Austen's Persuasion (1818), in the public domain, as the R package janeaustenr has it."""

EMBEDDED_SHA256 = "5238b5acc787aaa3570a9cf7aff6564c2c0a7cfe4382bb3358ffeb112bc9e621"
"""Of the text, decompressed."""

TEXT = "text"
FEWEST = 1_000
"""Bytes of a text that is worth to be split."""

_BLOCK = 1 << 20
_AGAIN = (
    "run 'knee-tune data prepare gpt ... --force', or remove the folder to have the embedded text "
    "prepared anew"
)

Blocks = Iterator[bytes]


class TextManifest(SetManifest):
    """Contents and origin of a prepared text."""

    bytes: dict[str, int]
    """By split, in the order of the file: "train", "valid" and "test"."""


@dataclass(frozen=True, kw_only=True)
class PreparedText(PreparedSet):
    """A preparation of a text."""

    bytes: dict[str, int]
    """By split."""

    def contents(self) -> str:
        """Sizes of the set, in a few words."""
        return ", ".join(f"{count:,} {split}" for split, count in self.bytes.items()) + " bytes"


def prepare(
    *,
    data_root: Path,
    from_path: Path | None = None,
    name: str | None = None,
    force: bool = False,
    progress: Callable[[str, float], None] = lambda text, share: None,
) -> PreparedText:
    """Prepare the set ``<data_root>/<name>`` of a file, or of all ``.txt`` files in a folder.

    Without ``from_path`` of the embedded text. ``name`` is by default that of the file or folder. A
    set that is there already stays, unless ``force``; another text needs it, or another name.
    UserError for everything wrong with the input; nothing is half-written.
    """
    began = time.monotonic()
    folder = set_folder(data_root, name or usual_name(from_path))
    origin = EMBEDDED.name if from_path is None else str(from_path.resolve())

    def prepared(manifest: TextManifest, *, reused: bool) -> PreparedText:
        return PreparedText(
            folder=folder,
            name=folder.name,
            bytes=manifest.bytes,
            fingerprint=manifest.fingerprint,
            seconds=time.monotonic() - began,
            reused=reused,
        )

    progress("read text", 0.0)
    if folder.exists() and not force:
        known = read_manifest(folder, verify=True)
        digest = sha256()
        for block in text_blocks(from_path):
            digest.update(block)
        if digest.hexdigest() == known.files[TEXT].sha256:
            return prepared(known, reused=True)
        raise UserError(
            f"{folder} was prepared from another text ({known.origin}): choose another `name`, or "
            "replace it with `force`"
        )
    with new_folder(folder) as partial:
        with (partial / TEXT).open("wb") as file:
            for block in text_blocks(from_path):
                file.write(block)
        size = (partial / TEXT).stat().st_size
        if size < FEWEST:
            raise UserError(
                f"`from_path` {from_path}: {size:,} bytes of text are too few to split into "
                f"training, validation and test; at least {FEWEST:,}"
            )
        files, fingerprint = record_files(partial)
        manifest = TextManifest(
            name=folder.name, origin=origin, bytes=_cut(size), files=files, fingerprint=fingerprint
        )
        write_manifest(partial, manifest)
    progress("read text", 1.0)
    return prepared(manifest, reused=False)


def find_prepared(data_dir: Path, name: str) -> tuple[Path, TextManifest]:
    """Folder and manifest of the prepared text ``name``; prepares the embedded one if missing.

    The text itself is not looked at. UserError if there is no such set.
    """
    folder = data_dir / name
    if name == DEFAULT_TEXT:
        prepare_once(folder, lambda: prepare(data_root=data_dir))
    return folder, read_manifest(folder)


def read_manifest(folder: Path, *, verify: bool = False) -> TextManifest:
    """The manifest of the text in ``folder``; UserError if there is no finished one.

    ``verify`` looks at the text too: UserError if it is missing or not as it was prepared.
    """
    missing = (
        f"recipe.data={folder.name}: no prepared text in {folder}; run 'knee-tune data prepare gpt "
        f"--from FILE --name {folder.name}', or use recipe.data={DEFAULT_TEXT}, which needs none"
    )
    manifest = prepared_folder.read_manifest(folder, TextManifest, missing=missing, again=_AGAIN)
    if verify:
        check_files(folder, manifest.files, again=_AGAIN)
    return manifest


def map_text(folder: Path, manifest: TextManifest) -> dict[str, Tensor]:
    """The splits, uint8 (bytes,), read from disk where they are touched."""
    # Copy on write, for torch takes no array that cannot be written to.
    text = torch.from_numpy(np.memmap(folder / TEXT, dtype=np.uint8, mode="c"))
    ends = [*accumulate(manifest.bytes.values())]
    return dict(zip(manifest.bytes, text.tensor_split(ends[:-1]), strict=True))


def embedded_text() -> bytes:
    """The text that travels with the package; UserError if it is not what it was."""
    text = bz2.decompress(EMBEDDED.read_bytes())
    if sha256(text).hexdigest() != EMBEDDED_SHA256:
        raise UserError(f"{EMBEDDED}: damaged; install knee-tune again")
    return text


def usual_name(path: Path | None, *, default: str = DEFAULT_TEXT) -> str:
    """What a set is called unless somebody says so: as its file or folder, or as the default."""
    if path is None:
        return default
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip(".-_")[:64] or TEXT


def _cut(size: int) -> dict[str, int]:
    train, valid = size * 90 // 100, size * 5 // 100
    return {"train": train, "valid": valid, "test": size - train - valid}


def text_blocks(path: Path | None) -> Blocks:
    """The text of a file or folder, or the embedded one, in blocks; UserError for what is none."""
    if path is None:
        yield embedded_text()
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*.txt") if each.is_file())
        if not files:
            raise UserError(f"`from_path` {path}: no .txt file in it; give a file by its name")
        for number, file in enumerate(files):
            if number:
                yield b"\n"
            yield from _read(file)
    elif path.is_file():
        yield from _read(path)
    else:
        raise UserError(f"`from_path` {path}: no such file or folder")


def _read(path: Path) -> Blocks:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            if b"\0" in block:
                raise UserError(
                    f"`from_path` {path}: not a text, it has zero bytes (UTF-16? an archive?); "
                    "give a plain UTF-8 file"
                )
            yield block
