"""What ``torchrun`` starts per rank: connects to the driver, forks the rank, tells its end.

The rank is a child so that somebody is left to say how it ended; torchrun would only print it.
"""

import contextlib
import os
import signal
import socket
import sys
from types import FrameType

from knee_tune.distributed.parent import fork_rank, tell_exit
from knee_tune.distributed.wire import Hello, Wire

DRIVER = "KNEE_TUNE_DRIVER"  # environment: host:port of the driver
TOKEN = "KNEE_TUNE_TOKEN"  # environment: proof of belonging to this launch


def main() -> None:
    """Run one rank; exits like it."""
    host, _, port = os.environ.pop(DRIVER).rpartition(":")
    line = socket.create_connection((host, int(port)))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    Wire(line).send(Hello(token=os.environ.pop(TOKEN), rank=int(os.environ["RANK"])))
    rank = fork_rank(line)

    def terminate(_number: int, _frame: FrameType | None) -> None:
        # Torchrun ends this rank because another one failed: no cause of its own to tell.
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, terminate)
    _, status = os.waitpid(rank, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(tell_exit(line, status) != 0)


if __name__ == "__main__":
    main()
