"""The second group runner: a fresh ``torchrun`` per plan, also under ``srun`` and across machines.

Traps it avoids: ``--max-restarts`` (retry belongs to the trial, and a restarted gloo group shares
the agent's TCPStore with the one before), and the shared store itself.
"""

import contextlib
import hmac
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from knee_tune.distributed.protocol import Decision, Failure, GroupRunner, Outcome, Report
from knee_tune.distributed.supervisor import Callbacks, Supervisor
from knee_tune.distributed.torchrun_rank import DRIVER, TOKEN
from knee_tune.distributed.wire import Hello, Order, Wire
from knee_tune.errors import UserError
from knee_tune.planning.plan import Plan

_TICK = 0.5  # seconds between two looks at the launcher
_LEAVE = 5.0  # seconds for the launcher to go by itself once its ranks are gone


class TorchrunRunner(GroupRunner):
    """Starts ``launcher`` for every plan; the ranks connect back to the driver by TCP.

    ``launcher`` ends in ``"torchrun"``, which stands for the one of this Python; what comes
    before starts it once per node: ``("srun", "torchrun")``. With ``nnodes`` > 1 the driver runs
    on one of the nodes, and ``host`` is the name under which the others reach it (default: this
    machine's); the same port must be reachable for torch's rendezvous.
    """

    def __init__(
        self,
        entry: str,
        launcher: Sequence[str] = ("torchrun",),
        nnodes: int = 1,
        *,
        host: str | None = None,
        launch_timeout: float = 300.0,
    ) -> None:
        shown = f"--launcher {' '.join(launcher)!r}"
        if not launcher or launcher[-1] != "torchrun":
            raise UserError(
                f"{shown}: the last word must be 'torchrun', for example 'srun torchrun'"
            )
        if len(launcher) > 1 and shutil.which(launcher[0]) is None:
            raise UserError(f"{shown}: there is no program {launcher[0]!r} on this machine's PATH")
        self._entry = entry
        self._launcher = [*launcher[:-1], sys.executable, "-m", "torch.distributed.run"]
        self._nnodes = nnodes
        self._host = host or ("127.0.0.1" if nnodes == 1 else socket.gethostname())
        self._launch_timeout = launch_timeout

    def run(
        self,
        plan: Plan,
        *,
        on_report: Callable[[Report], Decision],
        on_line: Callable[[str], None],
        on_progress: Callable[[int], None],
    ) -> Outcome:
        """Run ``plan`` to its end; ``on_report`` is asked after every evaluation."""
        per_node, rest = divmod(plan.placement.world_size, self._nnodes)
        if rest:
            raise UserError(
                f"placement.world_size {plan.placement.world_size} cannot be shared evenly by "
                f"{self._nnodes} nodes; choose a multiple"
            )
        token = secrets.token_hex(16)
        with (
            _log(plan) as log,
            tempfile.TemporaryDirectory(prefix="torchrun-", dir=plan.log_dir) as scratch,
            _listener(self._nnodes) as listener,
        ):
            port: int = listener.getsockname()[1]
            launched = self._launch(per_node, token, port=port, log=log, scratch=scratch)
            try:
                wires = self._gather(listener, launched, token, plan.placement.world_size)
                if wires is None:
                    return _not_launched(launched, log)
                for rank, wire in enumerate(wires):
                    order = Order(
                        entry=self._entry,
                        plan=plan,
                        rank=rank,
                        local_rank=rank % per_node,
                        store=None,
                    )
                    with contextlib.suppress(OSError):  # gone: the supervisor finds out
                        wire.send(order)
                callbacks = Callbacks(on_report=on_report, on_line=on_line, on_progress=on_progress)
                outcome = Supervisor(
                    wires,
                    stall_timeout=plan.placement.stall_timeout,
                    callbacks=callbacks,
                    local=self._nnodes == 1,
                ).run()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    launched.wait(timeout=_LEAVE)
                return outcome
            finally:
                _end(launched)

    def close(self) -> None:
        """Nothing to end: no process outlives ``run``."""

    def _launch(
        self, per_node: int, token: str, *, port: int, log: IO[bytes], scratch: str
    ) -> subprocess.Popen[bytes]:
        if self._nnodes == 1:
            rendezvous = ["--standalone"]
        else:
            rendezvous = [
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={self._host}:{_free_port()}",
                f"--rdzv-id={secrets.token_hex(4)}",
            ]
        environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            DRIVER: f"{self._host}:{port}",
            TOKEN: token,
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        command = [
            *self._launcher,
            "--max-restarts=0",
            f"--nnodes={self._nnodes}",
            f"--nproc-per-node={per_node}",
            *rendezvous,
            f"--log-dir={scratch}",  # torchrun would leave its own behind
            "--module",
            "knee_tune.distributed.torchrun_rank",
        ]
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _gather(
        self,
        listener: socket.socket,
        launched: subprocess.Popen[bytes],
        token: str,
        world_size: int,
    ) -> list[Wire] | None:
        """The wires of all ranks in rank order; None if the launcher fails or takes too long."""
        wires: dict[int, Wire] = {}
        deadline = time.monotonic() + self._launch_timeout
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while len(wires) < world_size:
                if launched.poll() is not None or time.monotonic() > deadline:
                    return None
                for key, _ in selector.select(_TICK):
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        selector.register(connection, selectors.EVENT_READ, Wire(connection))
                        continue
                    wire: Wire = key.data
                    selector.unregister(wire.socket)
                    match wire.receive():
                        case [Hello(token=shown, rank=rank)] if (
                            hmac.compare_digest(shown, token) and rank not in wires
                        ):
                            wires[rank] = wire
                        case _:  # a stranger
                            wire.socket.close()
        return [wires[rank] for rank in range(world_size)]


def _listener(nnodes: int) -> socket.socket:
    return socket.create_server(("127.0.0.1" if nnodes == 1 else "", 0))


def _log(plan: Plan) -> IO[bytes]:
    """What torchrun itself says, beside the logs of the ranks."""
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    return (plan.log_dir / "torchrun.log").open("a+b")


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _not_launched(launched: subprocess.Popen[bytes], log: IO[bytes]) -> Failure:
    code = launched.poll()
    how = "did not start its ranks in time" if code is None else f"ended with code {code}"
    log.seek(0)
    return Failure(
        kind="launch",
        rank=0,
        message=f"torchrun {how}",
        traceback=log.read().decode(errors="replace")[-4000:],
    )


def _end(launched: subprocess.Popen[bytes]) -> None:
    """Terminate the launcher, which terminates what it started, then kill it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if launched.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(launched.pid, number)
                launched.wait(timeout=_LEAVE)
