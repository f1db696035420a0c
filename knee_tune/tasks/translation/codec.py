"""From plain sentences to the pieces that a model reads and back, at prediction time."""

from pathlib import Path

from knee_tune.tasks.translation.bpe import Bpe
from knee_tune.tasks.translation.manifest import CODES, read_manifest
from knee_tune.tasks.translation.text import moses


class Codec:
    """The text processing of one prepared set; reads its manifest and its BPE codes only."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self._lowercase = manifest.lowercase
        self._source = moses(manifest.source)
        self._target = moses(manifest.target)
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
