"""What a Ray actor does for one rank: hold its warm process, fork it, signal it.

It knows nothing of Ray: an actor is made of it by who places it.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from knee_tune.workers.forkserver import WarmProcess
from knee_tune.workers.protocol import Hello, Wire
from knee_tune.workers.rendezvous import call, listen_beside

Store = Path | tuple[str, int]


class Host:
    """The place of one rank of a group, on whichever node its bundle is; outlives many ranks.

    Its warm process ends with it, and so does the rank. ``folder``: where the driver works, and so
    the ranks wherever a node has it.
    """

    def __init__(self, preload: Sequence[str], folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        # Ray brings a psutil of its own, and puts it before everybody's.
        sys.path[:] = [path for path in sys.path if "/site-packages/ray/" not in f"{path}/"]
        self._preload = tuple(preload)
        self._warm = WarmProcess(self._preload)

    def alive(self) -> None:
        """Answer: whoever is gone cannot."""

    def start(self, endpoint: str, token: str, rank: int, *, alone: bool) -> tuple[Store, str]:
        """Fork ``rank``, which calls the driver at ``endpoint``.

        Returns where its group may meet, which is asked of rank 0 (a file if the group is ``alone``
        on this node), and CUDA_VISIBLE_DEVICES of this actor: the GPUs that Ray gave it. OSError if
        the driver cannot be reached from here.
        """
        if not self._warm.alive:
            self._warm.close()
            self._warm = WarmProcess(self._preload)
        for ended in self._warm.stores.iterdir():
            ended.unlink()
        with contextlib.ExitStack() as stack:
            line = stack.enter_context(call(endpoint))
            listening: socket.socket | None = None
            store: Store = self._warm.stores / token
            if rank == 0 and not alone:
                listening = stack.enter_context(listen_beside(line))
                address, port = listening.getsockname()[:2]
                store = (address, port)
            # A node of its own each: they are heard in the order of ranks, whoever shares a node.
            Wire(line).send(Hello(token=token, node=f"{rank:06}", local_rank=0, store=None))
            self._warm.fork(line, store=listening)
        return store, os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the rank and to whatever it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)

    def errors(self) -> str:
        """The last of what the warm process wrote to stderr."""
        return self._warm.errors()
