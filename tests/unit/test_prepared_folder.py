"""A prepared set that is damaged later is named in one line."""

import json
from pathlib import Path

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.prepared_folder import MANIFEST
from knee_tune.tasks.vision.images import ImageManifest, read_manifest, write_images
from tests.generated_images import generated_images


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar10"
    write_images(folder, generated_images(train=4, test=2), origin="Müller's camera")
    return folder


def read(folder: Path) -> ImageManifest:
    return read_manifest(folder, task="cifar10", verify=True)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("damage", ["a byte", "the end", "gone", "a folder"])
def test_a_damaged_file_is_named(prepared: Path, name: str, damage: str) -> None:
    read(prepared)
    file = prepared / name
    content = bytearray(file.read_bytes())
    file.unlink()
    match damage:
        case "a byte":
            content[-1] ^= 1
            file.write_bytes(content)
        case "the end":
            file.write_bytes(content[:-1])
        case "a folder":
            file.mkdir()
    with pytest.raises(UserError, match=rf"{name}: missing or changed.*--force") as caught:
        read(prepared)
    assert "\n" not in str(caught.value)


def test_every_letter_of_a_manifest_counts(prepared: Path) -> None:
    sound, path = read(prepared), prepared / MANIFEST
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << 3 * place % 8
        path.write_bytes(changed)
        try:
            assert read(prepared) == sound  # a blank, or the name of the checksum itself
        except UserError as error:
            said = str(error)
            assert "damaged or of another version" in said
            assert "--force" in said


@pytest.mark.parametrize("content", ["", "[" * 100_000, "null", "[]", '"a"', "{}", "1e999"])
def test_what_is_no_manifest_is_refused(prepared: Path, content: str) -> None:
    (prepared / MANIFEST).write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: damaged or of another version"):
        read(prepared)


def test_a_manifest_that_is_a_folder_is_refused(prepared: Path) -> None:
    (prepared / MANIFEST).unlink()
    (prepared / MANIFEST).mkdir()
    with pytest.raises(UserError, match="damaged or of another version"):
        read(prepared)


def test_a_set_of_an_earlier_version_is_read(prepared: Path) -> None:
    path = prepared / MANIFEST
    content = json.loads(path.read_text())
    del content["manifest_sha256"]
    path.write_text(json.dumps(content))
    assert read(prepared).images == {"train": 4, "test": 2}
