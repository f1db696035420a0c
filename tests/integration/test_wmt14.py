"""Preparing WMT'14 from files of its own names: what fairseq's script would make of them."""

import random
import tarfile
from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.translation.batches import read_pairs
from knee_tune.tasks.translation.prepared import Codec, read_manifest
from knee_tune.tasks.translation.vocabulary import Vocabulary
from knee_tune.tasks.translation.wmt14 import TEST_FILES, prepare

pytest.importorskip("sacremoses")

STEMS = ("europarl-v7.de-en", "commoncrawl.de-en", "news-commentary-v9.de-en")
WORDS = {
    "en": ["House", "the", "self-made", "goes", "“no”", "EU’s", "1,000", "see"],
    "de": ["Haus", "das", "EU-Rat", "geht", "„nein“", "Übung", "1.000", "sieht"],
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """130 pairs in three texts, the middle one in its archive, and a test set."""
    folder, rng = tmp_path / "orig", random.Random(1)
    (folder / "training").mkdir(parents=True)
    for stem, pairs in zip(STEMS, (60, 50, 20), strict=True):
        places = [[rng.randrange(8) for _ in range(8)] for _ in range(pairs)]
        for language, words in WORDS.items():
            lines = [" ".join(words[place] for place in row) + ".\u200b" for row in places]
            (folder / "training" / f"{stem}.{language}").write_text("\n".join(lines) + "\n")
    with tarfile.open(folder / "training-parallel-commoncrawl.tgz", "w:gz") as archive:
        for language in WORDS:
            path = folder / "training" / f"{STEMS[1]}.{language}"
            archive.add(path, path.name)
            path.unlink()
    (folder / "test-full").mkdir()
    for name, line in zip(TEST_FILES, ("the EU’s self-made House.", "das „Haus“."), strict=True):
        text = f'<doc>\n<seg id="1">{line}</seg>\n<seg id="2"> {line} </seg>\n</doc>\n'
        (folder / "test-full" / name).write_text(text)
    return folder


def words(folder: Path, split: str, language: str) -> list[str]:
    vocabulary = Vocabulary.read(folder / f"dict.{language}.txt")
    pairs = read_pairs(folder, split, source="en", target="de")
    side = pairs.source if language == "en" else pairs.target
    assert side is not None
    return [vocabulary.text(tokens.tolist()) for tokens in side]


def test_it_is_the_recipe_of_fairseqs_script(corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    prepared = prepare(
        data_root=tmp_path,
        from_path=corpus,
        bpe_codes=60,
        progress=lambda text, _: said.append(text),
    )
    folder, manifest = prepared.folder, read_manifest(prepared.folder, verify=True)
    assert (prepared.name, manifest.source, manifest.target) == ("wmt14.en-de", "en", "de")
    assert not manifest.lowercase
    # Every 100th pair, counted through all texts, validates; nothing else is held out.
    assert {**prepared.pairs} == {"train": 129 - prepared.dropped, "valid": 1, "test": 2}
    text = " ".join(words(folder, "train", "en"))
    assert "self @-@ made" in text  # hyphens are split
    assert "&quot; no &quot;" in text  # quotes are straight, as all punctuation is made
    assert "\u200b" not in text  # what does not print is gone
    assert "EU @-@ Rat" in " ".join(words(folder, "train", "de"))
    # Of the test set quotes stay as they are, but the apostrophe.
    assert words(folder, "test", "en")[0] == "the EU &apos;s self @-@ made House ."
    assert words(folder, "test", "de")[1].count("<unk>") == 2
    assert "tokenize news-commentary-v9.de-en" in said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_translator_reads_sentences_as_the_training_text_was_read(
    corpus: Path, tmp_path: Path
) -> None:
    prepared = prepare(data_root=tmp_path, from_path=corpus, bpe_codes=60)
    codec = Codec(prepared.folder)
    pieces = codec.encode("The “self-made” House")
    assert pieces.replace("@@ ", "") == "The &quot; self @-@ made &quot; House"
    assert codec.decode(pieces) == 'The "self-made" House'


def test_the_same_again_does_nothing_and_other_merges_need_force(
    corpus: Path, tmp_path: Path
) -> None:
    first = prepare(data_root=tmp_path, from_path=corpus, bpe_codes=60)
    again = prepare(data_root=tmp_path, from_path=corpus, bpe_codes=60)
    assert again.reused
    assert again.fingerprint == first.fingerprint
    with pytest.raises(UserError, match="other options"):
        prepare(data_root=tmp_path, from_path=corpus, bpe_codes=50)


def test_what_is_missing_or_does_not_fit_is_named(corpus: Path, tmp_path: Path) -> None:
    with (corpus / "training" / "europarl-v7.de-en.de").open("a") as file:
        file.write("Noch eins.\n")
    with pytest.raises(UserError, match=r"europarl-v7\.de-en\.en and .* numbers of lines"):
        prepare(data_root=tmp_path, from_path=corpus)
    (corpus / "test-full" / TEST_FILES[1]).unlink()
    with pytest.raises(UserError, match=r"no newstest2014-deen-src\.en\.sgm .* no test-full\.tgz"):
        prepare(data_root=tmp_path, from_path=corpus)
    assert not (tmp_path / "wmt14.en-de").exists()
