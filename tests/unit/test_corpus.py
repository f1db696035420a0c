"""Finding and reading the files of a parallel corpus."""

import gzip
from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.translation.corpus import (
    find_corpus,
    read_lines,
    read_split,
    segment_text,
    split_off,
    talk_text,
)


def lay(folder: Path, *names: str, text: str = "eins zwei .\n") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train.tok.de", "train.tok.en", "train.bpe.de", "train.bpe.en", "bpe.codes"], "tok"),
        (["train.bpe.de", "train.bpe.en", "bpe.codes"], "bpe"),
        (["train.raw.de", "train.raw.en"], "raw"),
        (["train.raw.de", "train.raw.en", "train.tok.de", "train.tok.en"], "tok"),
        (["de-en/train.tags.de-en.de", "de-en/train.tags.de-en.en"], "xml"),
    ],
)
def test_names_tell_the_kind(tmp_path: Path, names: list[str], kind: str) -> None:
    assert find_corpus(lay(tmp_path, *names), source="de", target="en").kind == kind


@pytest.mark.parametrize(
    ("line", "kind"),
    [("Das ist so.", "raw"), ("das ist so .", "tok"), ("das i@@ st so .", "bpe")],
)
def test_plain_names_are_told_apart_by_their_text(tmp_path: Path, line: str, kind: str) -> None:
    lay(tmp_path, "train.de", "train.en", text=f"{line}\n" * 9)
    assert find_corpus(tmp_path, source="de", target="en").kind == kind
    assert find_corpus(tmp_path, source="de", target="en", kind="raw").kind == "raw"


def test_splits_are_found_by_their_usual_names(tmp_path: Path) -> None:
    lay(
        tmp_path,
        *(f"{split}.{side}" for split in ("train", "dev", "test") for side in ("fr", "it")),
    )
    corpus = find_corpus(tmp_path, source="fr", target="it")
    assert corpus.splits["valid"] == ((tmp_path / "dev.fr",), (tmp_path / "dev.it",))
    assert corpus.splits.keys() == {"train", "valid", "test"}


def test_prefixes_name_any_file(tmp_path: Path) -> None:
    lay(tmp_path, "news/europarl-v7.de", "news/europarl-v7.en")
    corpus = find_corpus(tmp_path, source="de", target="en", prefixes={"train": "news/europarl-v7"})
    assert corpus.splits["train"][0] == (tmp_path / "news/europarl-v7.de",)


def test_longer_names_are_found_and_told(tmp_path: Path) -> None:
    """Multi30k's, packed as they are published."""
    for name in ("train", "val", "test_2016_flickr"):
        for side in ("de", "en"):
            with gzip.open(tmp_path / f"{name}.{side}.gz", "wt", encoding="utf-8") as text:
                text.write(f"Ein Satz von {name}.\n")
    corpus = find_corpus(tmp_path, source="de", target="en")
    assert {split: sides[0][0].name for split, sides in corpus.splits.items()} == {
        "train": "train.de.gz",
        "valid": "val.de.gz",
        "test": "test_2016_flickr.de.gz",
    }
    assert corpus.remarks == ("test: taken from test_2016_flickr.de.gz and test_2016_flickr.en.gz",)
    assert read_split(corpus, "test")[0] == ["Ein Satz von test_2016_flickr."]


def test_of_several_test_sets_one_is_chosen(tmp_path: Path) -> None:
    names = ("train", "val", "test_2016_flickr", "test_2017_flickr")
    lay(tmp_path, *(f"{name}.{side}" for name in names for side in ("de", "en")))
    with pytest.raises(
        UserError, match=r"\(test_2016_flickr, test_2017_flickr\); choose one with `test_prefix`"
    ):
        find_corpus(tmp_path, source="de", target="en")
    chosen = find_corpus(
        tmp_path, source="de", target="en", prefixes={"test": "test_2017_flickr"}
    ).splits
    assert chosen["test"][0] == (tmp_path / "test_2017_flickr.de",)
    assert chosen["valid"][0] == (tmp_path / "val.de",)


@pytest.mark.parametrize("damage", [slice(0, 30), slice(10, None)], ids=["cut", "no gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: slice) -> None:
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"eins zwei drei\n" * 20)[damage])
    with pytest.raises(UserError, match=r"train\.de\.gz: no sound gzip file"):
        read_lines(tmp_path / "train.de.gz")


def test_the_tests_of_the_iwslt14_archive_come_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    sets = [
        "TED.tst2012",
        "TED.dev2010",
        "TED.tst2010",
        "TEDX.dev2012",
        "TED.tst2011",
        "TEDX.tst2013",
    ]
    for side in ("de", "en"):
        lay(tmp_path, f"train.tags.de-en.{side}", *(f"IWSLT14.{s}.de-en.{side}.xml" for s in sets))
    found = find_corpus(tmp_path, source="en", target="de").splits["test"]
    assert [path.name for path in found[0]] == [
        f"IWSLT14.{name}.de-en.en.xml"
        for name in ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
    ]


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (["train.tok.de"], {}, r"train\.tok\.en is missing: train\.tok\.de is there"),
        ([], {}, r"no train\.de and \.en.*`train_prefix`"),
        (["training.de"], {}, r"nearest: training\.de"),
        (["train.raw.de", "train.raw.en"], {"kind": "tok"}, r"no train\.tok\.de"),
        (
            ["europarl.de", "europarl.en"],
            {"prefixes": {"train": "europral"}},
            r"`train_prefix` europral: .*the nearest is europarl",
        ),
        (
            ["a.de", "a.en"],
            {"prefixes": {"valid": "a"}},
            r"`train_prefix` is missing",
        ),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, names: list[str], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find_corpus(lay(tmp_path, *names), source="de", target="en", **arguments)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_corpus(tmp_path / "none", source="de", target="en")


def test_sides_of_different_length_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, "train.tok.de", text="a\nb\n")
    lay(tmp_path, "train.tok.en", text="a\n")
    with pytest.raises(UserError, match=r"train\.tok\.de has 2 lines but .*train\.tok\.en has 1"):
        read_split(find_corpus(tmp_path, source="de", target="en"), "train")


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\ntwo\nf\xfcnf\n")
    with pytest.raises(UserError, match="line 3 is not UTF-8"):
        read_lines(tmp_path / "x")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("\n")
    with pytest.raises(UserError, match="empty"):
        read_lines(tmp_path / "x")


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffa\u2028b\x0c\r\n\nlast".encode())
    assert read_lines(tmp_path / "x") == ["a\u2028b\x0c", "", "last"]


def test_every_23rd_pair_is_held_out() -> None:
    german, english = [f"de {n}" for n in range(1, 70)], [f"en {n}" for n in range(1, 70)]
    rest, held_out = split_off(german, english)
    assert held_out == (["de 23", "de 46", "de 69"], ["en 23", "en 46", "en 69"])
    assert [line.replace("de", "en") for line in rest[0]] == rest[1]
    assert sorted([*rest[0], *held_out[0]]) == sorted(german)


def test_tags_of_the_ted_archive_are_taken_off() -> None:
    talk = [
        "<url>http://x</url>",
        "<keywords>a, b</keywords>",
        "<talkid>1</talkid>",
        "<title>A title</title>",
        "Text.",
    ]
    assert list(talk_text(talk)) == ["A title", "Text."]
    segments = ['<doc docid="1">', '<seg id="12"> It’s so. </seg>', "</doc>"]
    assert list(segment_text(segments)) == ["It's so."]
