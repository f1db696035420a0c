"""Texts made ready for BERT: documents as tokens, split by a draw, with a vocabulary."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from knee_tune.errors import UserError

pytest.importorskip("tokenizers", reason="needs the language extra")

from knee_tune.tasks.bert.pretraining_text import (
    FEWEST_ENTRIES,
    documents_of,
    find_prepared,
    prepare,
    read_manifest,
)
from knee_tune.tasks.bert.wordpiece import SPECIAL, read_tokenizer

DOCUMENTS = [f"Number {n}, as they say,\nis the square of {n} no more often." for n in range(60)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "My squares.txt"
    path.write_text("\n\n".join(DOCUMENTS))
    return path


def test_blank_lines_separate_documents(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("One\r\n two.\n\n \t\n\nThree é\n\n".encode())
    assert list(documents_of(path)) == ["One two.", "Three é"]


def test_a_file_becomes_documents_of_tokens(file: Path, tmp_path: Path) -> None:
    done = prepare(data_root=tmp_path / "data", from_path=file)
    assert done.name == "My-squares"
    assert done.vocabulary <= FEWEST_ENTRIES
    assert sum(done.documents.values()) == 60
    assert min(done.documents.values()) >= 3
    found = find_prepared(tmp_path / "data", done.name)
    tokenizer = read_tokenizer(found.folder, named="it")
    begin = found.starts[7]
    text = tokenizer.decode(found.tokens[begin : begin + found.lengths[7]].tolist())
    assert text.replace(" ", "").startswith("number7,astheysay")
    assert prepare(data_root=tmp_path / "data", from_path=file).reused
    assert "unigram entropy" in done.contents()


def test_splits_are_drawn_and_share_no_document(file: Path, tmp_path: Path) -> None:
    prepare(data_root=tmp_path, from_path=file, name="it")
    found = find_prepared(tmp_path, "it")
    held_out = np.flatnonzero(found.splits)
    assert {*found.splits.tolist()} == {0, 1, 2}
    assert not (np.diff(held_out) == 1).all()  # no one stretch of the text
    sizes = {split: found.size(split) for split in found.manifest.tokens}
    assert sum(sizes.values()) == len(found.tokens) + 60
    assert {split: len(found.stream(split)) for split in sizes} == sizes
    drawn = [
        found.stream("train", torch.Generator().manual_seed(seed)).at(torch.arange(300)).tolist()
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_unigram_entropy_is_that_of_the_training_tokens(file: Path, tmp_path: Path) -> None:
    done = prepare(data_root=tmp_path, from_path=file)
    found = find_prepared(tmp_path, done.name)
    counts = Counter[int]()
    for number in np.flatnonzero(found.splits == 0):
        counts.update(found.tokens[found.starts[number] :][: found.lengths[number]].tolist())
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    assert done.unigram_entropy == pytest.approx(entropy)


def test_a_vocabulary_can_be_given(file: Path, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*SPECIAL, "Number", "number", "Is", "is"]))
    plain = prepare(data_root=tmp_path, from_path=file, name="plain", vocabulary=vocabulary)
    cased = prepare(
        data_root=tmp_path, from_path=file, name="cased", vocabulary=vocabulary, lowercase=False
    )
    firsts = [int(find_prepared(tmp_path, each.name).tokens[0]) for each in (plain, cased)]
    assert firsts == [6, 5]
    assert read_tokenizer(cased.folder, named="it").encode("IS Is").tokens == ["[UNK]", "Is"]
    with pytest.raises(UserError, match=r"was prepared from another text, or with another voc"):
        prepare(data_root=tmp_path, from_path=file, name="plain")


def test_what_is_no_text_for_it_is_refused(file: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n\n".join(DOCUMENTS[:19]))
    with pytest.raises(UserError, match="19 documents are too few"):
        prepare(data_root=tmp_path / "data", from_path=few)
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"`vocabulary` .*wrong.txt: it has no token \[PAD\]"):
        prepare(data_root=tmp_path / "data", from_path=file, vocabulary=wrong)
    with pytest.raises(UserError, match=r"`vocabulary` .*nowhere: "):
        prepare(data_root=tmp_path / "data", from_path=file, vocabulary=tmp_path / "nowhere")
    assert not (tmp_path / "data" / "My-squares").exists()
    with pytest.raises(
        UserError, match=r"no prepared text in .*; run 'knee-tune data prepare bert"
    ):
        read_manifest(tmp_path / "data" / "My-squares")
