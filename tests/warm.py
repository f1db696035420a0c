"""Processes that begin warm: forked from one that has imported what each would import anew.

To import torch, Optuna and MLflow takes a process 8 s, more than most tests do with them. What
processes themselves have a part in (signals, kills, the entry point, how ranks are started) is
tested with real ones: :func:`cold`, and ``running`` of the command line.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import io
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import psutil

from knee_tune.workers import forkserver

REPOSITORY = Path(__file__).resolve().parents[1]

FOLDER = "WARM_PROCESSES_OF_TESTS"
"""Environment: the folder of the socket at which the process to fork from listens."""

_IMPORTS = (
    *("torch", "torch.nn.parallel", "torch._dynamo", "knee_tune.workers.rank", "knee_tune.jobs"),
    *("sqlalchemy.orm", "alembic.context", "optuna_dashboard", "mlflow", "plotly.graph_objects"),
    *("knee_tune.cli.commands", "knee_tune.commands.run", "knee_tune.commands.report"),
)


class Forked:
    """A process that calls ``entry`` (``module:function``) with ``arguments`` and then ``fds``.

    As much of ``subprocess.Popen`` as is needed of it; it leads a session of its own.
    """

    def __init__(
        self,
        entry: str,
        *arguments: Any,
        env: Mapping[str, str],
        cwd: Path,
        stdout: int,
        stderr: int,
        fds: Sequence[int] = (),
    ) -> None:
        order = {
            "entry": entry,
            "arguments": arguments,
            "environment": {**env, FOLDER: os.environ[FOLDER]},
            "folder": str(cwd),
            "path": [path or str(Path.cwd()) for path in sys.path],
        }
        hold()
        self.returncode: int | None = None
        self._line = _connect()
        socket.send_fds(self._line, [b"o"], [stdout, stderr, *fds])
        self._line.sendall(json.dumps(order).encode() + b"\n")
        self._told = self._line.makefile("r")
        self.pid = int(self._told.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal; TimeoutExpired if it lives on."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            self.returncode = int(self._told.readline())
            self._told.close()
            self._line.close()
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL, unless its end is known."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def run(
    entry: str, *arguments: str, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Call ``entry`` in a warm process, as ``subprocess.run`` starts a cold one."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = Forked(
            entry,
            *arguments,
            env=env,
            cwd=REPOSITORY,
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        try:
            code = process.wait(timeout)
        finally:
            if process.returncode is None:  # with what it may have started
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read())
    return subprocess.CompletedProcess([entry, *arguments], code, *said)


def command(*arguments: str) -> None:
    """Be the command line, whose ranks begin warm too."""
    from knee_tune.cli import main

    sys.argv[:] = ["knee-tune", *arguments]
    with warm_ranks():
        main()


def program(source: str, *arguments: str) -> None:
    """Be what ``python -c`` would be."""
    sys.argv[:] = ["-c", *arguments]
    exec(source, {"__name__": "__main__"})


def ranks(stores: str, preload: Sequence[str], control: int, _claim: int) -> None:
    """Be the process that ranks are forked from."""
    from knee_tune.workers.warm_process import main

    main(control, stores, preload)


_begun: list[int] = []


def helpers() -> list[psutil.Process]:
    """The living processes that ranks of this one's drivers are forked from."""
    return [psutil.Process(pid) for pid in _begun if psutil.pid_exists(pid)]


@contextmanager
def warm_ranks() -> Iterator[None]:
    """Drivers in this process have their ranks forked from a process that begins warm."""

    def start(self: Any, control: socket.socket, preload: Sequence[str]) -> Forked:
        forked = Forked(
            *("tests.warm:ranks", str(self.stores), list(preload)),
            env=os.environ,
            cwd=Path.cwd(),
            stdout=_NOTHING.fileno(),
            stderr=self._errors.fileno(),
            fds=[control.fileno(), self._claim],
        )
        _begun.append(forked.pid)
        return forked

    with mock.patch.object(forkserver.WarmProcess, "_start", start):
        yield


_cold_start = forkserver.WarmProcess._start


@contextmanager
def cold() -> Iterator[None]:
    """Drivers in this process start what their ranks are forked from, as they do outside tests."""
    with mock.patch.object(forkserver.WarmProcess, "_start", _cold_start):
        yield


# The process that all are forked from: one for all workers of a session of tests, begun when it is
# first needed. It ends once nobody holds it any more.

_NOTHING = Path(os.devnull).open("r+b")  # noqa: SIM115 - as long as this process lives

_held: list[socket.socket] = []
"""A line for as long as this process lives."""


@contextmanager
def folder() -> Iterator[None]:
    """A place for the socket, in the environment of all that is started meanwhile."""
    if FOLDER in os.environ:
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="knee-tune-tests-") as made,
        mock.patch.dict(os.environ, {FOLDER: made}),
    ):
        yield


def hold() -> None:
    """Have the process to fork from live as long as this one."""
    if _held:
        return
    place = Path(os.environ[FOLDER])
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            line = _connect()
        except OSError:  # nobody listens yet, or any more
            _begin(place)
            line = _connect()
    line.sendall(b"h")
    _held.append(line)


def _connect() -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(f"{os.environ[FOLDER]}/socket")
    except OSError:
        line.close()
        raise
    return line


def _begin(place: Path) -> None:
    (place / "socket").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))
        listener.listen(64)  # who comes early waits for the imports
        with (place / "log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-c", f"from tests import warm; warm.serve({listener.fileno()})"],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                cwd=REPOSITORY,
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def serve(listening: int) -> NoReturn:
    """Fork a process per order until nobody holds this one."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    gc.disable()
    for each in _IMPORTS:
        importlib.import_module(each)
    gc.freeze()
    gc.enable()
    assert threading.active_count() == 1
    listener = socket.socket(fileno=listening)
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno())
    holding: set[socket.socket] = set()
    lines: dict[int, socket.socket] = {}
    """Of the living, by pid."""
    while True:
        ready, _, _ = select.select([listener, wake, *holding], [], [])
        for gone in holding.intersection(ready):
            holding.remove(gone)
            gone.close()
            if not holding:
                os._exit(0)
        if wake in ready:
            wake.recv(4096)
            while lines and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with lines.pop(ended[0]) as line, contextlib.suppress(OSError):
                    line.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
        if listener in ready:
            line, _ = listener.accept()
            wish, fds, _, _ = socket.recv_fds(line, 1, 8)
            if wish == b"h":
                holding.add(line)
                continue
            if not wish:  # it has died before it said what it wants
                line.close()
                continue
            with line.makefile("r") as text:
                order = json.loads(text.readline())
            if not (pid := os.fork()):
                for end in (listener, wake, woken, line, *holding, *lines.values()):
                    end.close()
                _live(order, fds)
            for fd in fds:
                os.close(fd)
            lines[pid] = line
            line.sendall(b"%d\n" % pid)


def _live(order: dict[str, Any], fds: Sequence[int]) -> NoReturn:
    """Be a process of its own, from the first call to its exit code."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for here, fd in zip((1, 2), fds, strict=False):
            os.dup2(fd, here)
            os.close(fd)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(fd, "wb", 0), write_through=True) for fd in (1, 2)
        )
        random.seed()
        np.random.seed()
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        sys.path[:] = order["path"]
        module, _, name = order["entry"].partition(":")
        try:
            getattr(importlib.import_module(module), name)(*order["arguments"], *fds[2:])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        os._exit(code)
