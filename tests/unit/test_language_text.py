"""Texts made ready for the language model: of files and folders, whole or not at all."""

from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.language import text
from knee_tune.tasks.language.text import (
    embedded_text,
    find_prepared,
    map_text,
    prepare,
    read_manifest,
)
from knee_tune.tasks.prepared_folder import MANIFEST

LINES = "Of all the lines this is one.\n" * 100


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "My notes.txt"
    path.write_text(LINES)
    return path


def test_the_embedded_text_is_prepared_on_first_use(tmp_path: Path) -> None:
    folder, manifest = find_prepared(tmp_path / "data", "persuasion")
    assert manifest.bytes == {"train": 420059, "valid": 23336, "test": 23338}
    splits = map_text(folder, manifest)
    assert b"".join(bytes(part.tolist()) for part in splits.values()) == embedded_text()
    assert prepare(data_root=tmp_path / "data").reused


def test_a_damaged_embedded_text_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "EMBEDDED_SHA256", "0")
    with pytest.raises(UserError, match="damaged; install knee-tune again"):
        embedded_text()


def test_a_file_becomes_a_set_of_its_name(file: Path, tmp_path: Path) -> None:
    done = prepare(data_root=tmp_path / "data", from_path=file)
    assert done.name == "My-notes"
    assert done.contents() == "2,700 train, 150 valid, 150 test bytes"
    assert (done.folder / "text").read_text() == LINES
    assert not done.reused
    assert prepare(data_root=tmp_path / "data", from_path=file).reused


def test_the_texts_of_a_folder_follow_one_another(tmp_path: Path) -> None:
    book = tmp_path / "book"
    (book / "part 2").mkdir(parents=True)
    (book / "part 1.txt").write_text(LINES)
    (book / "part 2" / "end.txt").write_text("The end")
    (book / "cover.png").write_bytes(b"\0")
    done = prepare(data_root=tmp_path / "data", from_path=book)
    assert (done.folder / "text").read_text() == f"{LINES}\nThe end"


def test_another_text_needs_another_name_or_force(file: Path, tmp_path: Path) -> None:
    first = prepare(data_root=tmp_path / "data", from_path=file)
    file.write_text(f"{LINES}!")
    with pytest.raises(UserError, match=r"prepared from another text .*choose another `name`"):
        prepare(data_root=tmp_path / "data", from_path=file)
    second = prepare(data_root=tmp_path / "data", from_path=file, force=True)
    assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or folder"),
        (b"", "0 bytes of text are too few"),
        (b"too short", "9 bytes of text are too few"),
        ("Words and words. ".encode("utf-16") * 100, "not a text, it has zero bytes"),
    ],
)
def test_what_is_no_text_is_refused_and_leaves_nothing(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^`from_path` {path}: {said}") as error:
        prepare(data_root=tmp_path / "data", from_path=path)
    assert "\n" not in str(error.value)
    assert not [*(tmp_path / "data").glob("*")]


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.txt file in it"):
        prepare(data_root=tmp_path / "data", from_path=tmp_path)


def test_a_set_that_is_missing_or_changed_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe\.data=mine: no prepared text.*--name mine"):
        find_prepared(tmp_path, "mine")
    done = prepare(data_root=tmp_path / "data", from_path=file)
    (done.folder / "text").write_text(LINES.upper())
    read_manifest(done.folder)
    with pytest.raises(UserError, match="changed since it was prepared; run 'knee-tune data prep"):
        read_manifest(done.folder, verify=True)
    assert (done.folder / MANIFEST).is_file()
