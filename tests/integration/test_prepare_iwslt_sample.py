"""Preparation of the real IWSLT'14 sample."""

from pathlib import Path

import pytest

from knee_tune.tasks.translation.corpus import read_lines
from knee_tune.tasks.translation.prepare import prepare
from knee_tune.tasks.translation.text import Bpe, moses

pytest.importorskip("sacremoses")

LINES = 1000


@pytest.fixture(scope="module")
def sample(shared: Path) -> Path:
    return shared / "data" / "iwslt14-sample"


@pytest.mark.shared
@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_tokens_equal_those_of_the_moses_scripts(sample: Path, split: str, language: str) -> None:
    """All but the periods inside a line: before lower case they look like abbreviations."""
    plain = read_lines(sample / f"{split}.raw.{language}")[:LINES]
    expected = read_lines(sample / f"{split}.tok.{language}")[:LINES]
    found = [moses(language).tokenize(line).lower() for line in plain]
    assert [line.replace(" .", ".") for line in found] == [
        line.replace(" .", ".") for line in expected
    ]


@pytest.mark.shared
@pytest.mark.parametrize("language", ["de", "en"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_pieces_equal_those_of_subword_nmt(sample: Path, split: str, language: str) -> None:
    tokens = read_lines(sample / f"{split}.tok.{language}")[:LINES]
    expected = read_lines(sample / f"{split}.bpe.{language}")[:LINES]
    assert Bpe.read(sample / "bpe.codes").encode(tokens) == expected


@pytest.mark.shared
def test_the_sample_becomes_a_set(sample: Path, tmp_path: Path) -> None:
    done = prepare(data_root=tmp_path, from_path=sample)
    assert done.kind == "tok"
    assert done.pairs == {"train": 8746, "valid": 7283, "test": 6750}
    assert done.dropped == 0
    assert not done.warnings
    assert (done.folder / "bpe.codes").read_bytes() == (sample / "bpe.codes").read_bytes()
