"""Vocabularies and binary files."""

from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.translation.binary import binarize, read_binarized
from knee_tune.tasks.translation.vocabulary import Vocabulary

LINES = ["b a b", "c <unk> b", ""]


def test_a_vocabulary_is_sorted_and_padded_to_a_multiple_of_eight() -> None:
    vocabulary = Vocabulary.build(LINES)
    assert list(vocabulary.counts.items()) == [("b", 3), ("a", 1), ("c", 1), ("madeupword0000", 0)]
    assert len(vocabulary) == 8
    assert vocabulary.ids["b"] == 4


def test_a_vocabulary_survives_a_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(LINES)
    vocabulary.write(tmp_path / "dict.de.txt")
    assert Vocabulary.read(tmp_path / "dict.de.txt") == vocabulary


def test_a_damaged_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dict.de.txt").write_text("a 3\nb\n")
    with pytest.raises(UserError, match="line 2"):
        Vocabulary.read(tmp_path / "dict.de.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a \xff 3\n", "not UTF-8"),
        (b"a 3\na 2\n", "line 2 holds a symbol that is there already"),
        (b"<unk> 3\n", "line 1 holds a symbol"),
        (b"a " + b"9" * 5000, "line 1 is not a symbol and its count"),
        ("a \N{ARABIC-INDIC DIGIT THREE}".encode(), "line 1 is not a symbol and its count"),
    ],
)
def test_what_fairseq_would_not_read_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "dict.de.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"dict\.de\.txt: {said}"):
        Vocabulary.read(path)


def test_sentences_end_with_their_mark_and_strangers_are_unknown(tmp_path: Path) -> None:
    written = binarize(["b a", "x", ""], Vocabulary.build(LINES), tmp_path / "train")
    read = read_binarized(tmp_path / "train")
    assert read.tokens.tolist() == [4, 5, 2, 3, 2, 2]
    assert [sentence.tolist() for sentence in read] == [[4, 5, 2], [3, 2], [2]]
    assert written == (3, 6, 1)


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    binarize(LINES, Vocabulary.build(LINES), tmp_path / "train")
    data = tmp_path / "train.bin"
    data.write_bytes(data.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"holds 8 tokens but train\.idx says 9"):
        read_binarized(tmp_path / "train")
    (tmp_path / "train.idx").write_bytes(b"TNTIDX")
    with pytest.raises(UserError, match="damaged"):
        read_binarized(tmp_path / "train")


def test_every_byte_of_an_index_counts(tmp_path: Path) -> None:
    binarize(LINES, Vocabulary.build(LINES), tmp_path / "train")
    index = tmp_path / "train.idx"
    content = index.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << 3 * place % 8
        index.write_bytes(changed)
        with pytest.raises(UserError, match=r"train\.(idx|bin) "):
            read_binarized(tmp_path / "train")
