"""The warm process that ranks are forked from: everything imported, CUDA never touched.

It reads one byte and one socket per rank from its control socket (two sockets, if the rank may have
to serve the group's store), forks, and says on the rank's socket how it ended (exit code or
signal). When the driver closes the control socket, or dies, it ends at once, also amid its imports,
and every rank with it.
"""

import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from knee_tune.workers.protocol import Exit


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
        from knee_tune.workers.rank import live

        status = live(line, store)
    finally:
        os._exit(status)


def tell_exit(line: socket.socket, wait_status: int) -> int:
    """Tell on the dead rank's own line how it ended, and close it; the exit code."""
    code = os.waitstatus_to_exitcode(wait_status)
    # The rank may have died in the middle of a line; a driver that does not read is no reason
    # to wait.
    message = b"\n" + Exit(code=code).model_dump_json().encode() + b"\n"
    with contextlib.suppress(OSError):
        line.send(message, socket.MSG_DONTWAIT)
    line.close()
    return code


_PRELOAD = (
    "torch",
    "torch.nn.parallel",
    "torch._dynamo",
    "knee_tune.workers.rank",
)


def main(control_fd: int, stores: str, preload: Sequence[str]) -> None:
    """Serve until the control socket closes; ``stores`` is a folder to remove in the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's affair
    control = socket.socket(fileno=control_fd)
    gc.disable()  # imports leave a million objects that stay: looking through them takes seconds
    with _ending_with_driver(control, stores):
        for each in (*_PRELOAD, *preload):
            # Preloading only saves time: a rank that misses a module says so in its own failure.
            with contextlib.suppress(Exception):
                _import(each)
    gc.freeze()  # ranks share these pages; a collection in one must not copy them
    gc.enable()
    try:
        _serve(control)
    finally:
        _end(stores)


def _import(each: str) -> None:
    """Import a module, or with ``module:name`` what the module imports only for that name."""
    module, _, name = each.partition(":")
    found = importlib.import_module(module)
    if name and not hasattr(found, name):
        importlib.import_module(f"{module}.{name}")


def _end(stores: str) -> NoReturn:
    shutil.rmtree(stores, ignore_errors=True)
    os._exit(0)  # an orderly end of torch takes a second


@contextlib.contextmanager
def _ending_with_driver(control: socket.socket, stores: str) -> Iterator[None]:
    """Have a thread end this process as soon as the driver hangs up, whatever it is at.

    Afterwards that thread is gone: ranks must be forked from a process that has one alone.
    """
    looking, over = os.pipe()

    def look() -> None:
        ends = select.poll()
        for end in (control.fileno(), looking):
            ends.register(end, 0)  # of the hang-up alone: orders may come early
        if ends.poll()[0][0] != looking:
            _end(stores)

    thread = threading.Thread(target=look, name="driver")
    thread.start()
    try:
        yield
    finally:
        os.close(over)
        thread.join()
        os.close(looking)


def _serve(control: socket.socket) -> None:
    lines: dict[int, socket.socket] = {}  # of the living ranks, by pid
    wake, woken = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control, wake], [], [])
        if wake in ready:
            wake.recv(4096)
            _reap(lines)
        if control in ready:
            request, fds, _, _ = socket.recv_fds(control, 1, 2)
            if not request:
                break
            line, *stores = (socket.socket(fileno=each) for each in fds)
            store = stores[0] if stores else None
            try:
                private = [control, wake, woken, *lines.values()]
                pid = fork_rank(line, private=private, store=store)
            except OSError:  # no memory or no process left: the driver sees the line end
                line.close()
            else:
                lines[pid] = line
            if store is not None:
                store.close()
    for pid in lines:
        for kill in (os.kill, os.killpg):  # a rank forked just now leads no process group yet
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)


def _reap(lines: dict[int, socket.socket]) -> None:
    while lines:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell_exit(lines.pop(pid), status)
