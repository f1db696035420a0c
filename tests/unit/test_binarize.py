"""Vocabularies and binary files."""

from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.translation.binarize import Vocabulary, binarize, read_binarized

LINES = ["b a b", "c <unk> b", ""]


def test_a_vocabulary_is_sorted_and_padded_to_a_multiple_of_eight() -> None:
    vocabulary = Vocabulary.build(LINES)
    assert list(vocabulary.counts.items()) == [("b", 3), ("a", 1), ("c", 1), ("madeupword0000", 0)]
    assert len(vocabulary) == 8
    assert vocabulary.ids()["b"] == 4


def test_a_vocabulary_survives_a_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(LINES)
    vocabulary.write(tmp_path / "dict.de.txt")
    assert Vocabulary.read(tmp_path / "dict.de.txt") == vocabulary


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dict.de.txt").write_text("a 3\nb\n")
    with pytest.raises(UserError, match="line 2"):
        Vocabulary.read(tmp_path / "dict.de.txt")


def test_sentences_end_with_their_mark_and_strangers_are_unknown(tmp_path: Path) -> None:
    written = binarize(["b a", "x", ""], Vocabulary.build(LINES), tmp_path / "train")
    ids, sizes = read_binarized(tmp_path / "train")
    assert ids.tolist() == [4, 5, 2, 3, 2, 2]
    assert sizes.tolist() == [3, 2, 1]
    assert (written.sentences, written.tokens, written.unknown) == (3, 6, 1)


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    binarize(LINES, Vocabulary.build(LINES), tmp_path / "train")
    data = tmp_path / "train.bin"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"holds 8 tokens but train\.idx says 9"):
        read_binarized(tmp_path / "train")
    (tmp_path / "train.idx").write_bytes(b"TNTIDX")
    with pytest.raises(UserError, match="damaged"):
        read_binarized(tmp_path / "train")
