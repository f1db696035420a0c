"""What ``torchrun`` starts per rank: connects to the driver, forks the rank, tells its end.

The rank is a child so that somebody is left to say how it ended; torchrun would only print it.
"""

import contextlib
import os
import signal
import sys
from types import FrameType

from knee_tune.workers.protocol import Hello, Wire
from knee_tune.workers.rendezvous import call, listen_beside
from knee_tune.workers.warm_process import fork_rank, tell_exit

DRIVER = "KNEE_TUNE_DRIVER"  # environment: host:port of the driver

TOKEN = "KNEE_TUNE_TOKEN"  # environment: proof of belonging to this launch

NNODES = "KNEE_TUNE_NNODES"  # environment: on how many nodes the group's ranks are

NODE = "KNEE_TUNE_NODE"  # environment: a name that the ranks of one node share


def main() -> None:
    """Run one rank; exits like it."""
    line = call(os.environ.pop(DRIVER))
    local_rank = int(os.environ["LOCAL_RANK"])
    # The group's rank 0 is the first rank of one of the nodes.
    may_lead = os.environ.pop(NNODES) != "1" and local_rank == 0
    store = listen_beside(line) if may_lead else None
    Wire(line).send(
        Hello(
            token=os.environ.pop(TOKEN),
            node=os.environ.pop(NODE),
            local_rank=local_rank,
            store=store.getsockname()[:2] if store else None,
        )
    )
    rank = fork_rank(line, store=store)
    if store is not None:
        store.close()

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
