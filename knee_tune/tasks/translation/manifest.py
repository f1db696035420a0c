"""The manifest of a prepared set: what it holds, where it came from, and what vouches for it."""

from pathlib import Path
from typing import Any

from knee_tune.config.recipe import Spec
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.prepared_folder import MANIFEST, FileRecord, check_files

CODES = "bpe.codes"
DEMO = "demo.de-en"
"""The set that needs no download: it is generated, on first use."""

_AGAIN = "run 'knee-tune data prepare ... --force', or remove the folder to have the demo made anew"


class Manifest(Spec):
    """What a prepared set is and where it came from."""

    format: int = 1
    name: str
    kind: str
    """What it was made from: "raw", "tok", "bpe", "xml", "binarized" or "grammar"."""
    source: str
    target: str
    lowercase: bool
    pairs: dict[str, int]
    """Sentence pairs by split."""
    tokens: dict[str, int]
    """Tokens by ``split.language``, ends of sentences included."""
    unknown: dict[str, int]
    """Of those, tokens outside the vocabulary."""
    vocabulary: dict[str, int]
    """Entries by language, special symbols included."""
    dropped: int
    """Training pairs that cleaning took out."""
    overlap: dict[str, int]
    """Pairs by split whose source sentence also occurs in the training text."""
    request: dict[str, Any]
    """Options and checksums of the input: the same request need not be prepared twice."""
    files: dict[str, FileRecord]
    fingerprint: str
    """Changes whenever any file of the set does; independent of where it lies."""


def read_manifest(folder: Path, *, verify: bool = False) -> Manifest:
    """The manifest of the set in ``folder``; UserError if there is no finished set.

    ``verify`` looks at the files too: UserError if one is missing or not as it was prepared.
    Without it they need not be there: a served model has those of :func:`asset_names` only.
    """
    missing = (
        f"{folder}: no prepared data here; run 'knee-tune data prepare iwslt', "
        "or use '--preset demo', which needs none"
    )
    manifest = prepared_folder.read_manifest(folder, Manifest, missing=missing, again=_AGAIN)
    if verify:
        check_files(folder, manifest.files, again=_AGAIN)
    return manifest


def asset_names(manifest: Manifest) -> list[str]:
    """The files of a prepared set that translating raw sentences needs."""
    return [f"dict.{manifest.source}.txt", f"dict.{manifest.target}.txt", CODES, MANIFEST]
