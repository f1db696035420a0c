"""What we write without fairseq is what fairseq would have written, and it reads it."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knee_tune.tasks.translation.binary import binarize
from knee_tune.tasks.translation.demo import prepare_demo
from knee_tune.tasks.translation.prepared import read_manifest
from knee_tune.tasks.translation.vocabulary import Vocabulary

LINES = ["wir se@@ hen das haus .", "das haus , <unk> das .", "", "</s> wir wir se@@"]


@pytest.fixture(scope="module")
def data() -> Iterator[Any]:
    """fairseq.data; importing fairseq rewires the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    module = pytest.importorskip("fairseq.data")
    yield module
    root.setLevel(level)
    root.handlers[:] = handlers


def test_vocabulary_and_binary_files_are_the_same_bytes(data: Any, tmp_path: Path) -> None:
    theirs = data.Dictionary()
    for line in LINES:
        for word in line.split():
            theirs.add_symbol(word)
    theirs.finalize(threshold=0, nwords=-1, padding_factor=8)
    theirs.save(str(tmp_path / "theirs.txt"))
    ours = Vocabulary.build(LINES)
    ours.write(tmp_path / "ours.txt")
    assert (tmp_path / "ours.txt").read_bytes() == (tmp_path / "theirs.txt").read_bytes()

    builder = data.indexed_dataset.make_builder(
        str(tmp_path / "theirs.bin"), impl="mmap", vocab_size=len(theirs)
    )
    for line in [*LINES, "fremd"]:
        builder.add_item(theirs.encode_line(line, add_if_not_exist=False))
    builder.finalize(str(tmp_path / "theirs.idx"))
    binarize([*LINES, "fremd"], ours, tmp_path / "ours")
    for kind in ("bin", "idx"):
        ours_bytes = (tmp_path / f"ours.{kind}").read_bytes()
        assert ours_bytes == (tmp_path / f"theirs.{kind}").read_bytes()


def test_fairseq_loads_a_prepared_set(data: Any, tmp_path: Path) -> None:
    from fairseq.tasks.translation import load_langpair_dataset

    prepare_demo(tmp_path)
    folder = tmp_path / "demo.de-en"
    manifest = read_manifest(folder)
    dictionaries = {
        language: data.Dictionary.load(str(folder / f"dict.{language}.txt"))
        for language in ("de", "en")
    }
    assert {name: len(entries) for name, entries in dictionaries.items()} == manifest.vocabulary
    for split, pairs in manifest.pairs.items():
        dataset = load_langpair_dataset(
            str(folder),
            split,
            "de",
            dictionaries["de"],
            "en",
            dictionaries["en"],
            combine=False,
            dataset_impl="mmap",
            upsample_primary=1,
            left_pad_source=True,
            left_pad_target=False,
            max_source_positions=1024,
            max_target_positions=1024,
        )
        assert len(dataset) == pairs
        assert dataset.src_sizes.sum() == manifest.tokens[f"{split}.de"]
        english = dictionaries["en"].string(dataset[0]["target"], bpe_symbol="@@ ")
        assert english.endswith(" .")
