"""A prepared set of sentence pairs as training and prediction read it: manifest, files, text."""

from pathlib import Path
from typing import Any

from pydantic import Field

from knee_tune.config.recipe import Spec
from knee_tune.errors import UserError
from knee_tune.tasks import prepared_folder
from knee_tune.tasks.prepared_folder import MANIFEST, FileRecord, check_files, prepare_once
from knee_tune.tasks.translation.recipe import DEMO, TranslationRecipe
from knee_tune.tasks.translation.text import Bpe, Rules, moses

CODES = "bpe.codes"
_AGAIN = "run 'knee-tune data prepare ... --force', or remove the folder to have the demo made anew"


class Manifest(Spec):
    """Contents and origin of a prepared set."""

    format: int = 1
    name: str
    kind: str
    """What it was made from: "raw", "tok", "bpe", "xml", "binarized" or "grammar"."""
    source: str
    target: str
    lowercase: bool
    # Not stored where it is the first: sets of before know no other.
    rules: Rules = Field(default="iwslt14", exclude_if=lambda rules: rules == "iwslt14")
    """How raw sentences become tokens."""
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


def read_manifest(
    folder: Path, *, verify: bool = False, preparing: str = TranslationRecipe.preparing
) -> Manifest:
    """The manifest of the set in ``folder``; UserError if there is no finished set.

    The error names the command that is ``preparing`` one. ``verify`` looks at the files too:
    UserError if one is missing or not as it was prepared. Without it they need not be there: a
    served model has those of :func:`asset_names` only.
    """
    missing = (
        f"{folder}: no prepared data here; run 'knee-tune {preparing}', "
        "or use '`preset` demo', which needs none"
    )
    manifest = prepared_folder.read_manifest(folder, Manifest, missing=missing, again=_AGAIN)
    if verify:
        check_files(folder, manifest.files, again=_AGAIN)
    return manifest


def asset_names(manifest: Manifest) -> list[str]:
    """The files of a prepared set that translating raw sentences needs."""
    return [f"dict.{manifest.source}.txt", f"dict.{manifest.target}.txt", CODES, MANIFEST]


def find_prepared(
    data_dir: Path, name: str, *, preparing: str = TranslationRecipe.preparing
) -> tuple[Path, Manifest]:
    """Folder and manifest of the prepared set ``name``; prepares the demo set if it is missing.

    The files themselves are not looked at. UserError if there is no such set.
    """
    folder = data_dir / name
    if name == DEMO:
        prepare_once(folder, lambda: _prepare_demo(data_dir))
    try:
        return folder, read_manifest(folder, preparing=preparing)
    except UserError as error:
        raise UserError(f"recipe.data={name}: {error}") from None


def _prepare_demo(data_dir: Path) -> None:
    from knee_tune.tasks.translation.demo import prepare_demo  # nobody else needs it

    prepare_demo(data_dir)


class Codec:
    """Text processing of one prepared set; reads its manifest and its BPE codes only."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self._lowercase = manifest.lowercase
        self._source = moses(manifest.source, manifest.rules)
        self._target = moses(manifest.target, manifest.rules)
        self._bpe = Bpe.read(folder / CODES)

    def encode(self, sentence: str) -> str:
        """Pieces, joined by blanks, of a plain source sentence."""
        line = self._source.tokenize(sentence)
        return self._bpe.encode([line.lower() if self._lowercase else line])[0]

    def decode(self, line: str) -> str:
        """Plain target sentence of tokens or pieces joined by blanks."""
        return self._target.detokenize(*Bpe.decode([line]))

    def decode_source(self, line: str) -> str:
        """Plain source sentence of tokens or pieces joined by blanks."""
        return self._source.detokenize(*Bpe.decode([line]))
