"""The second group runner: a fresh ``torchrun`` per plan, also under ``srun`` and across machines.

Traps it avoids: ``--max-restarts`` (retry belongs to the trial, and a restarted gloo group shares
the agent's TCPStore with the one before), and the agents' store itself, which lets anybody in. So
``torchrun`` only starts the ranks of a node; here they meet and are numbered.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from knee_tune.errors import UserError
from knee_tune.leftovers import OF_TORCHRUN, scratch
from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.workers.protocol import (
    Callbacks,
    Failure,
    GroupRunner,
    Order,
    Outcome,
)
from knee_tune.workers.rendezvous import LOOPBACK, Rendezvous, own_address
from knee_tune.workers.supervisor import Supervisor
from knee_tune.workers.torchrun_rank import DRIVER, NNODES, TOKEN

_TICK = 0.5  # seconds between two looks at the launcher

_LEAVE = 5.0  # seconds for the launcher to go by itself once its ranks are gone


class TorchrunRunner(GroupRunner):
    """Starts ``launcher`` for every plan; the ranks connect back to the driver by TCP.

    ``launcher`` ends in ``"torchrun"``, which stands for the one of this Python; what comes
    before starts it once per node: ``("srun", "torchrun")``. With ``nnodes`` > 1 the driver listens
    at ``address``, the one of this machine's that the nodes reach (default: what its name stands
    for), and every rank at its node's address in that network. On one node all stays on loopback.
    """

    def __init__(
        self,
        entry: str,
        launcher: Sequence[str] = ("torchrun",),
        nnodes: int = 1,
        *,
        address: str | None = None,
        launch_timeout: float = 300.0,
    ) -> None:
        shown = f"`launcher` {' '.join(launcher)!r}"
        if not launcher or launcher[-1] != "torchrun":
            raise UserError(
                f"{shown}: the last word must be 'torchrun', for example 'srun torchrun'"
            )
        if len(launcher) > 1 and shutil.which(launcher[0]) is None:
            raise UserError(f"{shown}: there is no program {launcher[0]!r} on this machine's PATH")
        self._entry = entry
        node = "knee_tune.workers.torchrun_node"
        self._launcher = [*launcher[:-1], sys.executable, "-m", node]
        self._nnodes = nnodes
        self._address = own_address(address) if nnodes > 1 else LOOPBACK
        self._launch_timeout = launch_timeout

    def run(self, plan: Plan, callbacks: Callbacks) -> Outcome:
        """Run ``plan`` to its end; ``on_report`` is asked after every evaluation."""
        per_node, rest = divmod(plan.placement.world_size, self._nnodes)
        if rest:
            raise UserError(
                f"placement.world_size {plan.placement.world_size} cannot be shared evenly by "
                f"{self._nnodes} nodes; choose a multiple"
            )
        with (
            _log(plan) as log,
            scratch(OF_TORCHRUN, within=plan.log_dir) as (folder, claim),
            closing(
                Rendezvous(self._address, nnodes=self._nnodes, per_node=per_node)
            ) as rendezvous,
            self._launched(rendezvous, per_node, log=log, folder=folder, claim=claim) as launched,
        ):
            deadline = time.monotonic() + self._launch_timeout
            while not rendezvous.complete:
                if launched.poll() is not None or time.monotonic() > deadline:
                    return self._not_launched(launched, log)
                rendezvous.listen(_TICK)
            rendezvous.close()
            store = rendezvous.ranks[0][0].store or folder / "store"
            for rank, (hello, wire) in enumerate(rendezvous.ranks):
                order = Order(
                    entry=self._entry,
                    plan=plan,
                    rank=rank,
                    local_rank=hello.local_rank,
                    store=store,
                )
                with contextlib.suppress(OSError):  # gone: the supervisor finds out
                    wire.send(order)
            outcome = Supervisor(
                rendezvous.wires,
                stall_timeout=plan.placement.stall_timeout,
                callbacks=callbacks,
                local=self._nnodes == 1,
                saves=isinstance(plan, TrainPlan),
            ).run()
            with contextlib.suppress(subprocess.TimeoutExpired):
                launched.wait(timeout=_LEAVE)
            return outcome

    def close(self) -> None:
        """Do nothing: no process outlives ``run``."""

    def _not_launched(self, launched: subprocess.Popen[bytes], log: IO[bytes]) -> Failure:
        """Tell why; a launcher that lives is not started again: it would take as long once more."""
        log.seek(0)
        said = log.read().decode(errors="replace")[-4000:]
        code = launched.poll()
        if code is not None:
            message = f"torchrun ended with code {code}"
            return Failure(kind="launch", rank=0, message=message, traceback=said)
        message = f"torchrun did not start its ranks in {self._launch_timeout:g} s"
        if self._nnodes == 1:
            return Failure(kind="stalled", rank=0, message=message, traceback=said)
        message += (
            f"; do all nodes reach this one at `address` {self._address}? See {log.name} and the "
            "queue of the cluster"
        )
        return Failure(kind="user_error", rank=0, message=message, traceback=said)

    @contextmanager
    def _launched(
        self, rendezvous: Rendezvous, per_node: int, *, log: IO[bytes], folder: Path, claim: int
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The launcher, which has ended, and with it what it started, when the block ends."""
        environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            DRIVER: rendezvous.endpoint,
            TOKEN: rendezvous.token,
            NNODES: str(self._nnodes),
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
        }
        launched = subprocess.Popen(
            [*self._launcher, str(per_node), str(folder)],
            env=environment,
            pass_fds=[claim],  # it outlives a killed driver for a moment
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield launched
        finally:
            _end(launched)


def _log(plan: Plan) -> IO[bytes]:
    """Open the log of torchrun itself, beside those of the ranks."""
    plan.log_dir.mkdir(exist_ok=True)
    return (plan.log_dir / "torchrun.log").open("a+b")


def _end(launched: subprocess.Popen[bytes]) -> None:
    """Terminate the launcher, which terminates what it started, then kill it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if launched.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(launched.pid, number)
                launched.wait(timeout=_LEAVE)
