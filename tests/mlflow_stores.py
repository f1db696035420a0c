"""Real MLflow stores for tests: creating a schema takes 9 s, so it is done once and copied."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from knee_tune.tracking.store import connect, local_store
from tests import waiting
from tests.waiting import answers, awaited, reserved_port


def new_home(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """A home whose MLflow store exists and is empty."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    template = common / "mlflow-template"
    connect(local_store(template))
    home = folder / "home"
    home.mkdir()
    shutil.copyfile(template / "mlflow.db", home / "mlflow.db")
    return home


@contextmanager
def tracking_in(home: Path) -> Iterator[None]:
    """Models are loaded from a home's store meanwhile."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(local_store(home))
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


class TrackingServer:
    """``mlflow server`` in its own process group, on a store that outlives it."""

    def __init__(self, home: Path, port: int) -> None:
        self._home, self._port = home, port
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", local_store(self._home)]
        command += ["--artifacts-destination", str(self._home / "served-artifacts")]
        quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | quick,
                cwd=self._home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            awaited(lambda: answers(f"{self.uri}/health"), seconds=waiting.COMMAND)
        except AssertionError as error:
            raise TimeoutError((self._home / "server.log").read_text()) from error

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kill the server and its workers, if it runs."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def tracking_server(home: Path) -> Iterator[TrackingServer]:
    """A server that nobody has started yet; killed at last."""
    with reserved_port() as port:
        server = TrackingServer(home, port)
        try:
            yield server
        finally:
            server.kill()
