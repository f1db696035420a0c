"""The doctor answers about whatever it meets, and touches nothing."""

import importlib.util
import sqlite3
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

import psutil
import pytest

from knee_tune.commands import doctor
from knee_tune.commands.doctor import Check, examine


def by_name(home: Path, **changes: object) -> dict[str, Check]:
    settings: dict[str, object] = {
        "home": home,
        "data_dir": home / "data",
        "storage_url": f"sqlite:///{home}/optuna.db",
        "tracking_uri": f"sqlite:///{home}/mlflow.db",
    }
    return {check.name: check for check in examine(**{**settings, **changes})}  # type: ignore[arg-type]


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server whose /health says OK."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_working_set_up_passes(tmp_path: Path) -> None:
    checks = by_name(tmp_path / "runs")
    for name in ("python", "torch", "optuna", "mlflow", "collectives", "forkserver", "home"):
        assert checks[name].ok, checks[name]
    assert checks["torch"].detail == metadata.version("torch")
    assert "gloo" in checks["collectives"].detail


def test_it_says_what_a_record_does_not_see(tmp_path: Path) -> None:
    code = by_name(tmp_path)["code"]
    assert code.ok
    assert "not seen are modules loaded by a name made up at run time, and files" in code.detail


def test_it_creates_nothing(tmp_path: Path) -> None:
    checks = by_name(tmp_path / "runs")
    assert "will be created" in checks["storage"].detail
    assert checks["storage"].ok
    assert checks["tracking"].ok
    assert list(tmp_path.iterdir()) == []


def test_missing_libraries_are_findings_not_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    checks = by_name(tmp_path)
    assert not checks["torch"].ok
    assert "pip install 'torch" in checks["torch"].advice
    assert not checks["torch imports"].ok
    assert checks["fairseq-fixed"].ok, "only an extra needs it"
    assert "translation" in checks["fairseq-fixed"].detail


def test_a_version_outside_the_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.11", "optuna>=5.0"])
    monkeypatch.setattr(metadata, "version", lambda name: "2.3.0")
    checks = {check.name: check for check in doctor.check_libraries()}
    assert not checks["torch"].ok
    assert "torch>=2.11" in checks["torch"].advice
    assert checks["mlflow"].ok, "no requirement, no complaint"


def test_a_home_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = by_name(tmp_path / "file" / "runs")["home"]
    assert not home.ok
    assert "--home" in home.advice


def test_sqlite_on_a_network_file_system_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mount:
        mountpoint = str(tmp_path.resolve())
        fstype = "nfs4"

    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [Mount()])
    check = by_name(tmp_path / "runs")["file system"]
    assert not check.ok
    assert "PostgreSQL" in check.advice


@pytest.mark.parametrize(("content", "ok"), [(None, True), (b"not a database at all", False)])
def test_an_existing_storage_file(tmp_path: Path, content: bytes | None, ok: bool) -> None:
    file = tmp_path / "optuna.db"
    if content is None:
        with sqlite3.connect(file) as connection:
            connection.execute("create table t (x)")
    else:
        file.write_bytes(content)
    assert by_name(tmp_path)["storage"].ok is ok


@pytest.mark.parametrize(
    "url",
    ["nonsense", "postgresql://user:secret@127.0.0.1:1/db", "unknowndb://host/db"],
)
def test_a_storage_that_does_not_answer(url: str) -> None:
    check = doctor.check_storage(url)
    assert not check.ok
    assert "secret" not in check.detail + check.advice


def test_a_tracking_server_that_answers(server: str) -> None:
    assert doctor.check_tracking(server) == Check("tracking", True, f"{server} answers")


def test_a_tracking_server_that_is_away() -> None:
    check = doctor.check_tracking("http://user:secret@127.0.0.1:1")
    assert not check.ok
    assert "secret" not in check.detail
    assert "--tracking-uri" in check.advice


@pytest.mark.parametrize("there", [True, False])
def test_bytecode_that_is_not_written_hurts_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    spec = ModuleSpec("torch", None)
    spec.cached = str(tmp_path if there else tmp_path / "missing.pyc")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert doctor.check_bytecode().ok is there
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert doctor.check_bytecode().ok


def test_prepared_data_is_listed(tmp_path: Path) -> None:
    (tmp_path / "demo.de-en").mkdir()
    (tmp_path / "demo.de-en" / "manifest.json").write_text("{}")
    assert "demo.de-en" in doctor.check_data(tmp_path).detail
