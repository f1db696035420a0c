"""What every store through which homes share keeps: a folder, memory, S3."""

import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from knee_tune.runs import object_store
from knee_tune.runs.object_store import (
    DamagedEntryError,
    Manifest,
    ObjectStore,
    StoreError,
    open_store,
)
from tests import waiting

PLACE, NAME = "trunks/digits-0123", "00000064"


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store that nobody uses yet."""
    match request.param:
        case "folder":
            yield str(tmp_path / "store")
        case "memory":
            yield f"memory://{uuid.uuid4().hex}"
        case _:
            yield f"{request.getfixturevalue('s3_server').url}/{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> ObjectStore:
    return open_store(url)


@pytest.fixture
def files(tmp_path: Path) -> Mapping[str, Path]:
    """Files of a checkpoint, one of them in a folder."""
    contents = {"state.pt": b"s" * 1000, "replica-1/weights": b"w" * 10}
    for name, content in contents.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: tmp_path / "files" / name for name in contents}


def objects(store: ObjectStore) -> list[str]:
    """The names of all files of a store, without the folders that they are in."""
    return sorted(path.rpartition("/")[2] for path in store._found(""))


def test_what_is_put_can_be_fetched_until_it_is_dropped(
    store: ObjectStore, files: Mapping[str, Path], tmp_path: Path
) -> None:
    assert store.exclusive
    assert objects(store) == []  # nothing is left of trying it out
    assert store.put(PLACE, NAME, files, note={"task": "digits"})
    assert not store.put(PLACE, NAME, files)

    assert (store.names(PLACE), store.names("trunks/other")) == ([NAME], [])
    assert (store.has(PLACE, NAME), store.has(PLACE, "00000032")) == (True, False)
    ((place, name, manifest),) = store.entries("trunks")
    assert (place, name, manifest.size, manifest.note) == (PLACE, NAME, 1010, {"task": "digits"})
    (into := tmp_path / "into").mkdir()
    assert store.get(PLACE, NAME, into)
    assert {name: (into / name).read_bytes() for name in files} == {
        name: path.read_bytes() for name, path in files.items()
    }

    store.drop(PLACE, NAME)
    store.drop(PLACE, NAME)
    assert not store.get(PLACE, NAME, into)
    assert (store.names(PLACE), objects(store)) == ([], [])


def test_of_eight_writers_exactly_one_wins(
    store: ObjectStore, files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    all_have_put_their_parts, commit = threading.Barrier(8), store._commit

    def together(place: str, name: str, manifest: Manifest) -> bool:
        all_have_put_their_parts.wait(waiting.SOON)
        return commit(place, name, manifest)

    monkeypatch.setattr(store, "_commit", together)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda _: store.put(PLACE, NAME, files), range(8)))
    assert sorted(won) == [False] * 7 + [True]
    assert objects(store) == ["00000064.json", "state.pt", "weights"]  # losers leave nothing


KILLED = """
import os, pathlib, signal, sys
from knee_tune.runs.object_store import ObjectStore, open_store

ObjectStore._commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
url, place, name, file = sys.argv[1:]
open_store(url).put(place, name, {"state.pt": pathlib.Path(file)})
"""


def test_a_kill_between_parts_and_manifest_leaves_nothing_that_is_read(
    url: str,
    files: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if url.startswith("memory"):
        pytest.skip("memory ends with its process")
    command = [sys.executable, "-c", KILLED, url, PLACE, NAME, str(files["state.pt"])]
    assert subprocess.run(command, check=False).returncode == -9

    store = open_store(url)
    assert objects(store) == ["state.pt"]
    assert (store.names(PLACE), store.get(PLACE, NAME, tmp_path)) == ([], False)
    assert store.put(PLACE, NAME, files)
    assert store.sweep("trunks") == 0  # it might still be on its way
    monkeypatch.setattr(object_store, "ABANDONED", timedelta(days=-1))
    assert store.sweep("trunks") == 1
    assert objects(store) == ["00000064.json", "state.pt", "weights"]


def test_damage_is_named(store: ObjectStore, files: Mapping[str, Path], tmp_path: Path) -> None:
    store.put(PLACE, NAME, files)
    manifest = store.manifest(PLACE, NAME)
    assert manifest is not None
    part = f"{store._parts(PLACE, NAME, manifest.attempt)}/state.pt"
    named = f"{store.url}/{PLACE}/parts/{NAME}-{manifest.attempt}/state.pt"
    store._fs.pipe_file(part, b"s" * 999 + b"t")
    with pytest.raises(DamagedEntryError, match="does not match its checksum") as error:
        store.get(PLACE, NAME, tmp_path)
    assert str(error.value).startswith(named)

    store._fs.rm_file(part)
    with pytest.raises(DamagedEntryError, match="is missing"):
        store.get(PLACE, NAME, tmp_path)
    store._fs.pipe_file(store._manifest(PLACE, NAME), b"{")
    with pytest.raises(DamagedEntryError, match=r"00000064\.json is no manifest"):
        store.get(PLACE, NAME, tmp_path)
    assert store.put(PLACE, NAME, files)  # in its place


def test_an_answer_that_was_lost_is_looked_up(
    store: ObjectStore, files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is repeated is refused, because of what it wrote itself."""
    create = store._create

    def repeated(path: str, content: bytes) -> None:
        create(path, content)
        create(path, content)

    monkeypatch.setattr(store, "_create", repeated)
    assert store.put(PLACE, NAME, files)

    def refused(path: str, content: bytes) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(store, "_create", refused)
    with pytest.raises(StoreError, match="reset by peer"):
        store.put(PLACE, "00000032", files)
    assert objects(store) == ["00000064.json", "state.pt", "weights"]


def test_a_manifest_names_no_files_elsewhere() -> None:
    text = """{"attempt": "a", "made": "2026-11-30T12:00:00Z",
        "files": {"../../.bashrc": {"size": 1, "sha256": ""}}}"""
    with pytest.raises(ValueError, match="no name of a file"):
        Manifest.model_validate_json(text)
