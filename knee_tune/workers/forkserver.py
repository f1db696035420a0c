"""The default group runner: a fresh group per plan, forked from a warm process."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from knee_tune.leftovers import claimed, sweep
from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.workers.protocol import (
    Callbacks,
    Failure,
    GroupRunner,
    Order,
    Outcome,
    Wire,
)
from knee_tune.workers.supervisor import Supervisor

# The driver's sys.path makes every module importable there that is importable here. Unlike
# multiprocessing, nothing ever imports the driver's __main__ again.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from knee_tune.workers.warm_process import main
main(int(sys.argv[1]), sys.argv[2], sys.argv[4:])
"""

_STORES = "knee-tune-stores-"
"""How folders for the files of FileStores begin, in the folder for temporary ones."""


class ForkserverRunner(GroupRunner):
    """Forks the ranks of every plan from one process that has imported torch and ``preload``.

    The process starts to warm up as soon as the runner is made, and is started again if it dies.
    ``run`` may be called from several threads at once. ``entry`` names the job as
    ``"module:function"``. Ranks see the environment and the working folder of the moment in which
    the runner was made.
    """

    def __init__(self, entry: str, preload: Sequence[str] = ()) -> None:
        self._entry = entry
        self._preload = tuple(preload)
        self._warm: WarmProcess | None = None
        self._starting = threading.Lock()
        self.warm()

    def warm(self) -> "WarmProcess":
        """Make sure that the warm process exists, without waiting for its imports."""
        with self._starting:
            if self._warm is None or not self._warm.alive:
                self._close_warm()
                self._warm = WarmProcess(self._preload)
            return self._warm

    def run(self, plan: Plan, callbacks: Callbacks) -> Outcome:
        """Run ``plan`` to its end; ``on_report`` is asked after every evaluation."""
        process = self.warm()
        store = process.stores / uuid.uuid4().hex
        try:
            wires = [
                self._fork(process, plan, rank=rank, store=store)
                for rank in range(plan.placement.world_size)
            ]
            outcome = Supervisor(
                wires,
                stall_timeout=plan.placement.stall_timeout,
                callbacks=callbacks,
                local=True,
                saves=isinstance(plan, TrainPlan),
            ).run()
        finally:
            store.unlink(missing_ok=True)
        if isinstance(outcome, Failure) and outcome.kind == "launch":
            return outcome.model_copy(update={"traceback": process.errors()})
        return outcome

    def close(self) -> None:
        """End the warm process, and with it every rank that still runs."""
        with self._starting:
            self._close_warm()

    def _close_warm(self) -> None:
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    def _fork(self, process: "WarmProcess", plan: Plan, *, rank: int, store: Path) -> Wire:
        ours, theirs = socket.socketpair()
        wire = Wire(ours)
        with theirs, contextlib.suppress(OSError):  # a dead one: the supervisor finds out
            process.fork(theirs)
            wire.send(Order(entry=self._entry, plan=plan, rank=rank, local_rank=rank, store=store))
        return wire


class WarmProcess:
    """The handle of the warm process, for who started it. ``stores``: its folder for FileStores."""

    def __init__(self, preload: Sequence[str]) -> None:
        sweep(Path(tempfile.gettempdir()).glob(f"{_STORES}*"))
        self.stores, claim = claimed(lambda: Path(tempfile.mkdtemp(prefix=_STORES)))
        self._claim = claim  # the process inherits it, and removes the folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(theirs, preload)

    def _start(self, control: socket.socket, preload: Sequence[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                _PROGRAM,
                str(control.fileno()),
                str(self.stores),
                json.dumps([path or str(Path.cwd()) for path in sys.path]),
                *preload,
            ],
            # A module that asks at import whether there is a GPU must not initialise CUDA
            # here: it would be of no use in any forked rank.
            env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            pass_fds=[control.fileno(), self._claim],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    @property
    def alive(self) -> bool:
        """Whether it still listens; known as soon as it dies, unlike its exit status."""
        try:
            self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False  # it never writes: this is the end of the line

    def fork(self, line: socket.socket, *, store: socket.socket | None = None) -> None:
        """Fork a rank that lives on ``line``; ``store``: where it is to serve its group's store."""
        passed = [line.fileno()] if store is None else [line.fileno(), store.fileno()]
        socket.send_fds(self._control, [b"r"], passed)

    def errors(self) -> str:
        """The last of what it wrote to stderr."""
        if self._errors.closed:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-4000:]

    def close(self) -> None:
        """End it, and with it every rank that still runs."""
        self._control.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        shutil.rmtree(self.stores, ignore_errors=True)
        os.close(self._claim)
