"""A Slurm cluster of one's own: two nodes on this machine, thrown away afterwards."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]

SCRIPT = REPOSITORY / "examples" / "slurm" / "knee-tune.sbatch"
"""What people give to sbatch."""

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

# Debian keeps servers where users' PATH does not look.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1
PartitionName=main Nodes=ALL Default=YES
"""


def is_installed() -> bool:
    """Whether there is all of Slurm that a cluster needs."""
    return all(shutil.which(program, path=_PATH) for program in PROGRAMS)


class Slurm:
    """A cluster that runs, and commands to it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)

    def __call__(self, *command: str, folder: Path | None = None) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(
            command, env=self.environment, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job."""
        shown = self("scontrol", "--oneliner", "show", "job", number).split()
        return dict(field.split("=", 1) for field in shown if "=" in field)


@contextmanager
def slurm(folder: Path, environment: Mapping[str, str]) -> Iterator[Slurm]:
    """Start a cluster, whose jobs have ``environment``, and end all of it."""
    variables = {**environment, "SLURM_CONF": f"{folder}/slurm.conf"}
    variables["PATH"] = f"{variables.get('PATH', '')}:/usr/sbin:/sbin"
    folder.mkdir(mode=0o755, parents=True)
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            ports=_three_ports(),
        )
    )
    munged = ("munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2")
    files = (f"--{name}={folder}/munge.{name[:-5]}" for name in ("pid-file", "log-file"))
    with ExitStack() as servers:

        def start(*command: str) -> None:
            process = subprocess.Popen(
                command,
                env=variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            servers.callback(_end, process)

        start(*munged, *files, f"--seed-file={folder}/seed", f"--socket={folder}/munge.socket")
        _wait_for((folder / "munge.socket").exists)
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        cluster = Slurm(variables)
        _wait_for(lambda: _answer(cluster).split() == ["idle", "2"])
        yield cluster


def _wait_for(look: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Return once ``look`` is true. TimeoutError if it does not become so."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Slurm did not start in {seconds:g} s")
        time.sleep(0.1)


def _answer(cluster: Slurm) -> str:
    try:
        return cluster("sinfo", "--noheader", "--states=idle", "--format=%t %D")
    except AssertionError:
        return ""  # the controller does not listen yet


def _three_ports() -> tuple[int, int, int]:
    """Free ones; the nodes' are neighbours."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            try:
                with socket.socket() as second, socket.socket() as third:
                    second.bind(("127.0.0.1", port + 1))
                    third.bind(("127.0.0.1", port + 2))
                    return port, port + 1, port + 2
            except OSError:
                continue


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server with all that it has started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
