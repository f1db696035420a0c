"""A disk that fails, or a server that is away, is nobody's mistake, and is not called one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
import sqlalchemy
from mlflow.exceptions import MlflowException

from knee_tune.commands.budget import known_search
from knee_tune.commands.home import Home
from knee_tune.config.strict_yaml import find, read_document
from knee_tune.errors import MachineError, UserError, disk_trouble
from knee_tune.tasks.archive import unpacked
from knee_tune.tasks.translation.corpus import read_lines
from knee_tune.tasks.translation.download import Archive, download
from knee_tune.tasks.vision.cifar10_prepare import read_source
from knee_tune.tracking.registry import _one_line_errors


def unpack(path: Path) -> None:
    with unpacked(path, expected="a corpus"):
        pass


def fetch(path: Path) -> None:
    source = path.parents[1] / "data.tgz"
    download(Archive(name="x.tgz", urls=(source.as_uri(),)), path.parent, pause=0)


def register(path: Path) -> None:
    with _one_line_errors("http://h:5000"):
        path.read_bytes()


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (unpack, "a.tgz"),
        (lambda path: read_lines(path), "train.de.gz"),
        (lambda path: read_source(path.parent), "data_batch_1"),
        (lambda path: read_document(path, "study"), "study.yaml"),
        (lambda path: known_search(Home(path.parents[1]), "b"), "budgets/b.json"),
        (fetch, "downloads/x.tgz.part"),
        (register, "mlflow.db"),
    ],
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_file_that_the_disk_does_not_give(
    act: Callable[[Path], object],
    name: str,
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for each in (name, "data.tgz", *(f"data_batch_{part}" for part in range(1, 6)), "test_batch"):
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_bytes(b"x")
    usual = open

    def opened(path: object, *arguments: object, **options: object) -> object:
        if str(path) == str(tmp_path / name):
            raise OSError(number, os.strerror(number), path)
        return usual(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr("io.open", opened)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        act(tmp_path / name)
    assert disk_trouble(raised.value) == f"{tmp_path / name}: {os.strerror(number)}"


@pytest.mark.parametrize(
    ("method", "act"),
    [
        ("mkdir", lambda path: Home(path / "home").create()),
        ("is_file", lambda path: find("studies", str(path / "x.yaml"))),
    ],
)
def test_a_folder_that_the_disk_does_not_give(
    method: str, act: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), self)

    monkeypatch.setattr(Path, method, broken)
    with pytest.raises(OSError, match="Read-only"):
        act(tmp_path)


def of_a_database() -> sqlalchemy.exc.OperationalError:
    error = sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("refused"))
    error.__cause__ = error.orig
    return error


def of_mlflow() -> MlflowException:
    error = MlflowException("no answer")
    error.__cause__ = of_a_database()
    return error


@pytest.mark.parametrize(
    ("uri", "error", "kind"),
    [
        ("http://h:5000", MlflowException("API request to http://h:5000/x failed"), MachineError),
        ("http://h:5000", requests.ConnectionError("refused"), MachineError),
        ("http://h:5000", requests.Timeout("too long"), MachineError),
        ("postgresql://h/d", of_a_database(), MachineError),
        ("postgresql://h/d", of_mlflow(), MachineError),
        ("sqlite:///x.db", of_a_database(), UserError),  # as where a table is missing
        ("http://h:5000", MlflowException("API request to endpoint /x failed: 403"), UserError),
    ],
)
def test_a_server_that_is_away(uri: str, error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^`tracking_uri` "), _one_line_errors(uri):
        raise error
