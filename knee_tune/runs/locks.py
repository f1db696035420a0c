"""Who else is at work: locks of slots, drivers and commands, and whether a noted process lives.

A lock is on a file, and the system frees it with its holder, however that ends.
"""

import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

POLL_SECONDS = 0.2


def file_lock(path: Path) -> FileLock:
    """Return a lock that excludes every other on ``path``, those of this process's threads too."""
    path.parent.mkdir(exist_ok=True)
    return FileLock(path, thread_local=False, is_singleton=False)


def try_lock(lock: FileLock) -> bool:
    """Take ``lock`` if nobody holds it."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


@contextmanager
def held_once(
    lock: FileLock, *, unless: Callable[[], bool], meanwhile: Callable[[], None]
) -> Iterator[FileLock]:
    """Wait until ``unless()`` or until ``lock`` is ours, and let go of it on the way out at last.

    ``meanwhile`` is called whenever there is nothing yet; what it raises ends the wait.
    """
    try:
        while not (unless() or try_lock(lock)):
            meanwhile()
            time.sleep(POLL_SECONDS)
        yield lock
    finally:
        lock.release()


PROC = Path("/proc")


def process_id() -> dict[str, Any]:
    """Describe this process, so that others can tell whether it lives (:func:`lives`).

    A pid means something within one boot of one machine and within one PID namespace (a container
    has its own), and names one process together with its start. ``ticks`` is that start in clock
    ticks since the boot, which no change of the clock moves; ``started``, in seconds since the
    epoch, stands in for it where there is no /proc.
    """
    return dict(_described(os.getpid()))


@functools.cache  # the clock may be set while we live, and nothing else can change
def _described(pid: int) -> Mapping[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": pid,
        "ticks": _ticks(pid),
        "started": psutil.Process(pid).create_time(),
    }


def lives(process: Mapping[str, Any]) -> bool | None:
    """Whether a process that :func:`process_id` described lives; None if that cannot be seen here.

    It cannot for one of another machine or container, for one of an earlier boot (machines may
    share a name), and for what versions noted that knew only a host's name.
    """
    here = (_boot(), _namespace())
    if not here[0] or (process.get("boot"), process.get("namespace")) != here:
        return None
    pid = process["pid"]
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return False
        if process["ticks"] is not None:
            return bool(process["ticks"] == _ticks(pid))
        started: float = process["started"]
        return abs(psutil.Process(pid).create_time() - started) < 1  # its pid may be another's now
    except psutil.NoSuchProcess:
        return False


@functools.cache
def _boot() -> str:
    """Of this boot of this machine alone; empty if the system does not say."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:  # macOS
        command = ("sysctl", "-n", "kern.bootsessionuuid")
        said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.stdout.strip()


def _namespace() -> int | None:
    """The PID namespace of this process; None where there is but one."""
    try:
        return (PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return None


def _ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None where /proc does not say."""
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # field 22; the 2nd, a name, may hold anything
