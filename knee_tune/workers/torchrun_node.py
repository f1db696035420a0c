"""What the launcher starts once per node: ``torchrun`` for the ranks of this node alone.

Agents of several nodes would meet in a store that listens on every interface of a machine, and
torch unpickles what it finds there, whoever put it there. So every agent is the only one of its
rendezvous, in a file of a folder that nobody else may enter; which node has which ranks is the
driver's affair.
"""

import os
import secrets
import socket
import sys
import tempfile

from knee_tune.workers.torchrun_rank import NODE


def main(per_node: str, scratch: str) -> None:
    """Start ``per_node`` ranks and wait for them; exits as torchrun does."""
    from torch.distributed import run

    # Without this the agent opens a second store, for its ranks, on every interface.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ[NODE] = f"{socket.gethostname()}-{secrets.token_hex(8)}"
    folder = tempfile.mkdtemp(dir=scratch)  # scratch is the driver's, who removes it
    run.main(
        [
            "--max-restarts=0",
            "--nnodes=1",
            f"--nproc-per-node={per_node}",
            "--rdzv-backend=c10d",
            "--rdzv-conf=store_type=file",
            f"--rdzv-endpoint={folder}/rendezvous",
            "--local-addr=127.0.0.1",  # else it asks for this machine's name
            f"--log-dir={folder}",  # torchrun would leave its own behind
            "--module",
            "knee_tune.workers.torchrun_rank",
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
