"""Preparing corpora of every kind, from files to a finished set."""

import gzip
import io
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pytest

from knee_tune.commands.home import Home
from knee_tune.commands.look import training_command
from knee_tune.commands.opened import resolve_asked
from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import MANIFEST
from knee_tune.tasks.translation.binary import read_binarized
from knee_tune.tasks.translation.corpus import Kind
from knee_tune.tasks.translation.demo import demo_text, prepare_demo
from knee_tune.tasks.translation.download import Archive
from knee_tune.tasks.translation.prepare import prepare, prepare_own
from knee_tune.tasks.translation.prepared import Codec, read_manifest
from knee_tune.tasks.translation.vocabulary import Vocabulary

pytest.importorskip("sacremoses")


def write(folder: Path, files: dict[str, list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def plain(lines: list[str]) -> list[str]:
    return [line.capitalize().replace(" .", ".").replace(" ,", ",") for line in lines]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """230 pairs of plain text in one file a side."""
    german, english = demo_text()["train"]
    return write(
        tmp_path / "raw", {"train.de": plain(german[:230]), "train.en": plain(english[:230])}
    )


def words(folder: Path, split: str, language: str) -> list[str]:
    """Text of a binary file, pieces put together."""
    return [line.replace("@@ ", "") for line in pieces(folder, split, language)]


def pieces(folder: Path, split: str, language: str) -> list[str]:
    """Text of a binary file as it is."""
    symbols = list(Vocabulary.read(folder / f"dict.{language}.txt").ids)
    read = read_binarized(folder / f"{split}.de-en.{language}")
    ids, sizes = read.tokens, read.sizes
    lines = []
    for size in sizes:
        line, ids = ids[: size - 1], ids[size:]
        lines.append(" ".join(symbols[token] for token in line))
    return lines


def test_plain_text_becomes_a_set(raw: Path, tmp_path: Path) -> None:
    phases: list[str] = []
    done = prepare(
        data_root=tmp_path / "data",
        from_path=raw,
        bpe_codes=50,
        progress=lambda text, fraction: phases.append(text),
    )
    folder = tmp_path / "data" / "iwslt14.de-en"
    assert done.folder == folder
    assert done.kind == "raw"
    assert not done.reused
    # Every 23rd pair is validation, then every 23rd of the rest test.
    assert done.pairs["valid"] == (230 - done.dropped) // 23
    assert sum(done.pairs.values()) == 230 - done.dropped
    train = demo_text()["train"][0][:230]
    if not done.dropped:
        assert words(folder, "valid", "de") == train[22::23]
    assert list(dict.fromkeys(phases)) == [
        "tokenize de",
        "tokenize en",
        "learn BPE",
        "apply BPE",
        "binarize",
    ]
    manifest = read_manifest(folder, verify=True)
    assert manifest.vocabulary == done.vocabulary
    assert not list((tmp_path / "data").glob(".*"))


def test_the_same_request_again_does_nothing(raw: Path, tmp_path: Path) -> None:
    first = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    again = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    assert again.reused
    assert again.fingerprint == first.fingerprint


def test_another_request_needs_another_name_or_force(raw: Path, tmp_path: Path) -> None:
    first = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    with pytest.raises(UserError, match="other options: choose another `name`"):
        prepare(data_root=tmp_path, from_path=raw, bpe_codes=60)
    other = prepare(data_root=tmp_path, from_path=raw, bpe_codes=60, force=True)
    assert other.fingerprint != first.fingerprint
    assert read_manifest(other.folder).fingerprint == other.fingerprint


def test_the_fingerprint_tells_the_data_not_the_place(raw: Path, tmp_path: Path) -> None:
    one = prepare(data_root=tmp_path / "a", from_path=raw, bpe_codes=50, name="one")
    two = prepare(data_root=tmp_path / "b", from_path=raw, bpe_codes=50, name="two")
    assert one.fingerprint == two.fingerprint


def test_a_failed_preparation_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    def fail(text: str, fraction: float) -> None:
        if text == "binarize":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data_root=tmp_path / "data", from_path=raw, bpe_codes=50, progress=fail)
    assert not list((tmp_path / "data").iterdir())


def test_a_folder_that_is_no_set_is_never_overwritten(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "data" / "mine"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("precious")
    for force in (False, True):
        with pytest.raises(UserError, match="no prepared set"):
            prepare(data_root=mine.parent, name="mine", from_path=raw, force=force)
    assert (mine / "thesis.txt").read_text() == "precious"


def test_text_that_is_cut_already_stays_as_it_is(raw: Path, tmp_path: Path) -> None:
    first = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    source = (first.folder / "bpe.codes").read_text()
    cut = write(
        tmp_path / "cut",
        {
            f"{split}.{language}": [" ".join(line.split()) for line in lines]
            for split in ("train", "valid", "test")
            for language in ("de", "en")
            for lines in [pieces(first.folder, split, language)]
        },
    )
    with pytest.raises(UserError, match="`codes` FILE"):
        prepare(data_root=tmp_path, from_path=cut, name="cut-set", kind="bpe")
    (cut / "code").write_text(source)
    second = prepare(data_root=tmp_path, from_path=cut, name="cut-set")
    assert second.kind == "bpe"
    assert second.fingerprint == first.fingerprint
    assert not second.warnings


def test_codes_that_do_not_fit_the_text_are_warned_about(raw: Path, tmp_path: Path) -> None:
    german, english = demo_text()["train"]
    cut = write(tmp_path / "cut", {"train.bpe.de": german[:99], "train.bpe.en": english[:99]})
    (cut / "bpe.codes").write_text("#version: 0.2\na b\n")
    done = prepare(data_root=tmp_path, from_path=cut)
    assert "100% of the training lines" in done.warnings[0]


def test_what_is_held_out_of_the_training_text_is_said(raw: Path, tmp_path: Path) -> None:
    done = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    valid, test = done.warnings
    assert valid.startswith("valid: no files of that name, so every 23rd training pair, ")
    assert "test.de and test.en, or by `test_prefix`" in test


def test_a_corpus_as_multi30k_is_published_loses_no_training_pair(tmp_path: Path) -> None:
    german, english = demo_text()["train"]
    sizes = {"train": 100, "val": 10, "test_2016_flickr": 20}
    corpus = tmp_path / "multi30k"
    corpus.mkdir()
    for name, size in sizes.items():
        for language, lines in (("de", german), ("en", english)):
            with gzip.open(corpus / f"{name}.{language}.gz", "wt", encoding="utf-8") as text:
                text.write("".join(f"{line}\n" for line in plain(lines[:size])))
    done = prepare(data_root=tmp_path, from_path=corpus, bpe_codes=50)
    assert done.pairs == {"train": 100 - done.dropped, "valid": 10, "test": 20}
    (said,) = done.warnings
    assert said == "test: taken from test_2016_flickr.de.gz and test_2016_flickr.en.gz"


@pytest.mark.parametrize("kind", ["raw", "tok"])
def test_capitals_can_be_kept(kind: Kind, raw: Path, tmp_path: Path) -> None:
    lower = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50, kind=kind, name="lower")
    kept = prepare(
        data_root=tmp_path, from_path=raw, bpe_codes=50, kind=kind, name="kept", lowercase=False
    )
    assert [read_manifest(each.folder).lowercase for each in (lower, kept)] == [True, False]
    assert words(kept.folder, "train", "de")[0] != words(lower.folder, "train", "de")[0]
    assert Codec(kept.folder).encode("Der Hund").replace("@@ ", "") == "Der Hund"
    with pytest.raises(UserError, match="other options"):
        prepare(data_root=tmp_path, from_path=raw, bpe_codes=50, kind=kind, name="kept")


@pytest.mark.parametrize(
    ("name", "setting"), [("mine", "recipe.data=mine"), ("2016", """'recipe.data="2016"'""")]
)
def test_the_next_step_is_a_command_that_works(
    name: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no such place")  # which the data does not need
    command = training_command("iwslt", Home(tmp_path / "my home"), name)
    assert f"run --task iwslt --set {setting} --home '{tmp_path}/my home'" in command
    words_ = shlex.split(command)
    setting = words_[words_.index("--set") + 1]
    study = resolve_asked(task="iwslt", settings=(setting,))
    assert study.recipe["data"] == name
    assert study.name == f"knee-{name}-50ep"
    assert study.subject == name


def test_a_corpus_of_ones_own_keeps_its_capitals(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        for language, line in (("fr", "Le Chat dort."), ("en", "The Cat sleeps.")):
            with gzip.open(corpus / f"{split}.{language}.gz", "wt") as file:
                file.write(f"{line}\n" * 9)
    own: dict[str, Any] = {"data_root": tmp_path, "from_path": corpus, "bpe_codes": 9}

    prepared = prepare_own(**own, source="fr")

    assert (prepared.name, prepared.pairs["train"]) == ("mine", 9)
    assert "Chat" in Codec(prepared.folder).encode("Chat").replace("@@ ", "")
    lower = prepare_own(**own, source="fr", name="lower", lowercase=True)
    assert "chat" in Codec(lower.folder).encode("Chat").replace("@@ ", "")
    with pytest.raises(UserError, match=r"^`from_path` is missing: .*train\.fr and train\.en"):
        prepare_own(data_root=tmp_path, source="fr")


def test_given_codes_are_applied(raw: Path, tmp_path: Path) -> None:
    codes = tmp_path / "my.codes"
    codes.write_text("#version: 0.2\nd e\n")
    done = prepare(data_root=tmp_path, from_path=raw, codes=codes)
    assert (done.folder / "bpe.codes").read_text() == codes.read_text()
    codes.write_text("#version: 0.2\nd a\n")
    with pytest.raises(UserError, match="other options"):
        prepare(data_root=tmp_path, from_path=raw, codes=codes)


def test_one_vocabulary_can_serve_both_languages(raw: Path, tmp_path: Path) -> None:
    done = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50, joint_dictionary=True)
    german, english = (done.folder / f"dict.{language}.txt" for language in ("de", "en"))
    assert german.read_bytes() == english.read_bytes()


def test_binarized_data_is_taken_over(raw: Path, tmp_path: Path) -> None:
    first = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    second = prepare(data_root=tmp_path, from_path=first.folder, name="copy")
    assert second.kind == "binarized"
    assert second.fingerprint == first.fingerprint
    assert second.pairs == first.pairs
    # German-English data serves English-German as well.
    back = prepare(
        data_root=tmp_path, from_path=first.folder, name="back", source="en", target="de"
    )
    assert (back.folder / "train.en-de.en.bin").is_file()


def test_binarized_data_with_the_wrong_vocabulary_is_refused(raw: Path, tmp_path: Path) -> None:
    first = prepare(data_root=tmp_path, from_path=raw, bpe_codes=50)
    (first.folder / "dict.de.txt").write_text("nur 1\n")
    with pytest.raises(UserError, match="not from one preparation"):
        prepare(data_root=tmp_path, from_path=first.folder, name="copy")


def test_the_ted_archive_is_prepared_by_the_recipe(tmp_path: Path) -> None:
    german, english = demo_text()["train"]
    archive = tmp_path / "downloads" / "ted.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as stream:
        for language, lines in (("de", german), ("en", english)):
            talk = ["<url>http://x</url>", "<title>Titel</title>", *plain(lines[:230])]
            segments = [
                f'<seg id="{n}"> {line} </seg>' for n, line in enumerate(plain(lines[300:330]))
            ]
            for name, text in (
                (f"train.tags.de-en.{language}", talk),
                (f"IWSLT14.TED.tst2010.de-en.{language}.xml", ["<doc>", *segments, "</doc>"]),
            ):
                content = "\n".join(text).encode()
                info = tarfile.TarInfo(f"de-en/{name}")
                info.size = len(content)
                stream.addfile(info, io.BytesIO(content))
    known = Archive(name="ted.tgz", urls=())
    done = prepare(data_root=tmp_path, archive=known, bpe_codes=50)
    assert done.kind == "xml"
    assert done.pairs["test"] == 30
    assert done.pairs["train"] + done.pairs["valid"] + done.dropped == 231
    assert words(done.folder, "test", "en")[0] == english[300]
    archive.unlink()
    assert prepare(data_root=tmp_path, archive=known, bpe_codes=50).reused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "de", "target": "de"}, "must differ"),
        ({"source": "../x"}, "`source`"),
        ({"name": "../x"}, "`name`"),
        ({"bpe_codes": 0}, "`bpe_codes` 0"),
        ({"codes": Path("nowhere")}, "`codes` nowhere: no such file"),
        ({"codes": Path(__file__), "bpe_codes": 9}, "not both"),
        ({"source": "fr"}, "only German-English can be downloaded"),
        ({"from_path": Path(__file__)}, "no readable archive"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(data_root=tmp_path / "data", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_too_little_text_to_hold_some_out(tmp_path: Path) -> None:
    little = write(tmp_path / "x", {"train.de": ["Ja."] * 9, "train.en": ["Yes."] * 9})
    with pytest.raises(UserError, match="9 training pairs are too few"):
        prepare(data_root=tmp_path, from_path=little)


def test_the_demo_set_is_made_once_and_is_always_the_same(tmp_path: Path) -> None:
    first = prepare_demo(tmp_path / "a")
    stamp = (tmp_path / "a" / "demo.de-en" / MANIFEST).stat().st_mtime_ns
    assert prepare_demo(tmp_path / "a") == first
    assert (tmp_path / "a" / "demo.de-en" / MANIFEST).stat().st_mtime_ns == stamp
    assert prepare_demo(tmp_path / "b").fingerprint == first.fingerprint
    assert not any(first.unknown.values())


def test_sentences_go_in_and_out_of_the_demo_set(tmp_path: Path) -> None:
    prepare_demo(tmp_path)
    codec = Codec(tmp_path / "demo.de-en")
    assert codec.encode("Der Hund schläft.").replace("@@ ", "") == "der hund schläft ."
    assert codec.decode("the do@@ g sleep@@ s .") == "the dog sleeps."
    assert codec.decode_source("der hu@@ nd schläft .") == "der hund schläft."
