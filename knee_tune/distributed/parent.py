"""The parent of a rank: forks it and tells the driver how it ended (exit code or signal).

Imports nothing heavy: a process that only waits for a rank stays small.
"""

import contextlib
import os
import socket
from collections.abc import Iterable

from knee_tune.distributed.wire import Exit


def fork_rank(
    line: socket.socket,
    *,
    private: Iterable[socket.socket] = (),
    store: socket.socket | None = None,
) -> int:
    """Fork a rank that lives on ``line``; its pid. It closes the parent's ``private`` sockets.

    ``store``: where the group's store is to listen if the rank turns out to be its first.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for sock in private:
            sock.close()
        from knee_tune.distributed.rank import live

        status = live(line, store)
    finally:
        os._exit(status)


def tell_exit(line: socket.socket, wait_status: int) -> int:
    """Say on the dead rank's own line how it ended, and close it; the exit code."""
    code = os.waitstatus_to_exitcode(wait_status)
    # The rank may have died in the middle of a line; a driver that does not read is no reason
    # to wait.
    message = b"\n" + Exit(code=code).model_dump_json().encode() + b"\n"
    with contextlib.suppress(OSError):
        line.send(message, socket.MSG_DONTWAIT)
    line.close()
    return code
