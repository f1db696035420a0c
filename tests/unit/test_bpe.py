"""Byte-pair encoding gives what subword-nmt gives."""

import io
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.translation.text import Bpe

WORDS = Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3})


def test_the_most_frequent_pairs_are_learned_first() -> None:
    assert Bpe.learn(WORDS, merges=4).merges == (
        ("s", "t</w>"),
        ("e", "st</w>"),
        ("l", "o"),
        ("w", "est</w>"),
    )


def test_words_are_cut_and_put_together_again() -> None:
    bpe = Bpe.learn(WORDS, merges=4)
    assert bpe.encode(["lowest  newer"]) == ["lo@@ west n@@ e@@ w@@ e@@ r"]
    assert bpe.decode(bpe.encode(["lowest newer", ""])) == ["lowest newer", ""]


def test_rare_pairs_are_not_learned() -> None:
    assert Bpe.learn({"ab": 1, "cd": 2}, merges=9).merges == (("c", "d</w>"),)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_codes_and_pieces_equal_those_of_subword_nmt(seed: int) -> None:
    learner = pytest.importorskip("subword_nmt.learn_bpe")
    applier = pytest.importorskip("subword_nmt.apply_bpe")
    random = Random(seed)
    # Few letters: long runs of the same one, overlapping pairs, many ties.
    words = Counter(
        "".join(random.choices("aaabcdä", k=random.randint(1, 12))) for _ in range(1000)
    )
    theirs = io.StringIO()
    learner.learn_bpe([f"{word} {n}\n" for word, n in words.items()], theirs, 150, is_dict=True)
    ours = Bpe.learn(words, merges=150)
    assert ["#version: 0.2", *(" ".join(pair) for pair in ours.merges)] == (
        theirs.getvalue().splitlines()
    )
    reference = applier.BPE(theirs)
    unseen = ["".join(random.choices("aaabcdäz", k=random.randint(1, 15))) for _ in range(500)]
    assert ours.encode(unseen) == [reference.segment(word) for word in unseen]


def test_codes_survive_a_file(tmp_path: Path) -> None:
    bpe = Bpe.learn(WORDS, merges=4)
    bpe.write(tmp_path / "codes")
    assert Bpe.read(tmp_path / "codes").merges == bpe.merges


@pytest.mark.parametrize(
    ("content", "wrong"),
    [("a b\n", "line 1"), ("#version: 0.2\na b\na b c\n", "line 3"), ("\xff", "not UTF-8")],
)
def test_a_file_that_holds_no_codes_is_refused(tmp_path: Path, content: str, wrong: str) -> None:
    path = tmp_path / "bpe.codes"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=wrong):
        Bpe.read(path)
