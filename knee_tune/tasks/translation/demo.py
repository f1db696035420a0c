"""The demo corpus, which needs no download: 2,600 German-English sentence pairs."""

import bz2
from collections import Counter
from pathlib import Path

from knee_tune.tasks.prepared_folder import new_folder, set_folder
from knee_tune.tasks.translation.binarize import Text, finished, write_text
from knee_tune.tasks.translation.prepared import Manifest
from knee_tune.tasks.translation.recipe import DEMO
from knee_tune.tasks.translation.text import Bpe

TEXT = Path(__file__).with_name("demo.tsv.bz2")
"""German TAB English, tokenized and in lower case; ``benchmarks/demo_corpus.py`` generated it."""

PAIRS = {"train": 2000, "valid": 300, "test": 300}
"""Sentence pairs by split, in the order of the file."""

MERGES = 600
SEED = 1
VERSION = 1
"""Of the generator; raised whenever the same seed would give other sentences."""


def demo_text() -> dict[str, Text]:
    """Lines of both sides, by split; no German sentence occurs twice."""
    pairs = [line.split("\t") for line in bz2.decompress(TEXT.read_bytes()).decode().splitlines()]
    text: dict[str, Text] = {}
    for split, size in PAIRS.items():
        part, pairs = pairs[:size], pairs[size:]
        text[split] = ([german for german, _ in part], [english for _, english in part])
    return text


def prepare_demo(data_root: Path) -> Manifest:
    """Prepare the set ``demo.de-en`` below ``data_root``, unless it is there."""
    folder = set_folder(data_root, DEMO)
    request = {"generator": VERSION, "seed": SEED, "pairs": PAIRS, "merges": MERGES}
    if manifest := finished(folder, request):
        return manifest
    text = demo_text()
    words = Counter(word for side in text["train"] for line in side for word in line.split())
    bpe = Bpe.learn(words, merges=MERGES)
    pieces = {split: (bpe.encode(de), bpe.encode(en)) for split, (de, en) in text.items()}
    with new_folder(folder) as partial:
        return write_text(
            partial,
            pieces,
            name=DEMO,
            kind="grammar",
            source="de",
            target="en",
            bpe=bpe,
            request=request,
        )
