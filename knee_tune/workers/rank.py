"""The life of one rank: order, process group, job, and how it ended. Both runners use it."""

import contextlib
import faulthandler
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]

from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.plans.plan import SCRIPT, Placement, Plan
from knee_tune.workers.group import Group, ran_out_of_memory
from knee_tune.workers.protocol import (
    Alive,
    Channel,
    Decision,
    Done,
    Failure,
    Line,
    Order,
    Position,
    Progress,
    Ready,
    Report,
    Started,
    Wire,
)

Job = Callable[[Plan, Group, Channel], Done]
"""What an entry names. Every rank calls it; the driver gets rank 0's answer."""

FAILED = 17
"""Exit code of a rank that has sent its :class:`Failure`."""

_PROGRESS_INTERVAL = 1.0  # seconds

_BEAT_INTERVAL = 5.0  # seconds

_COLLECTIVES = ("/torch/distributed/", "/torch/autograd/", "/knee_tune/workers/group.py")


class DriverLine(Channel):
    """A rank's line to the driver. A thread reads it and ends the rank when the driver dies.

    Another one beats: so a rank that is stopped, or whose machine is gone, is told from one that
    takes its time.
    """

    def __init__(self, wire: Wire, rank: int) -> None:
        self._wire = wire
        self._rank = rank
        self._step = 0
        self._next_progress = 0.0
        self._decisions: queue.SimpleQueue[Decision] = queue.SimpleQueue()
        self._interrupted = threading.Event()
        threading.Thread(target=self._listen, daemon=True, name="driver-line").start()
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def report(self, report: Report) -> Decision:
        """Send metrics and wait for the decision."""
        if self._rank:
            raise RuntimeError("only rank 0 reports")
        self._step = report.step
        self._wire.send(report)
        return self._decisions.get()

    def progress(self, step: int) -> None:
        """Give a sign of life, at most one a second."""
        self._step = step
        now = time.monotonic()
        if now >= self._next_progress:
            self._next_progress = now + _PROGRESS_INTERVAL
            self._wire.send(Progress(step=step))

    def line(self, text: str) -> None:
        """Say something to the people who watch."""
        self._wire.send(Line(text=text))

    @property
    def interrupted(self) -> bool:
        """Whether the driver wants the state saved and the run ended."""
        return self._interrupted.is_set()

    def _listen(self) -> None:
        for answer in self._wire.answers():
            if isinstance(answer, Decision):
                if answer.save:
                    self._interrupted.set()
                self._decisions.put(answer)
            else:
                self._wire.send(self._position())
        os._exit(FAILED)  # no driver, no rank

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the driver is gone, which the other thread sees to
            while True:
                self._wire.send(Alive())
                time.sleep(_BEAT_INTERVAL)

    def _position(self) -> Position:
        frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
        if frame is None:
            return Position(step=self._step, waits=False, stack="")
        return Position(
            step=self._step,
            waits=any(part in frame.f_code.co_filename for part in _COLLECTIVES),
            stack="".join(traceback.format_stack(frame)),
        )


class _Forward(logging.Handler):
    """Sends warnings and errors of the rank's log to the people who watch."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.line(f"{record.levelname.lower()}: {record.getMessage().strip()}")


def live(line: socket.socket, store: socket.socket | None = None) -> int:
    """Take the order from ``line``, do the job, tell how it ended; the exit code.

    ``store`` is the socket on which rank 0 of a group on several machines serves its store.
    After an error the caller must leave by ``os._exit``: no collective teardown, which would
    wait for peers that are stuck.
    """
    _leave_the_parent()
    wire = Wire(line)
    try:
        order = wire.read_order()
    except (EOFError, OSError):
        return FAILED  # the driver died first
    wire.send(Started(pid=os.getpid()))
    try:
        _redirect(order.plan.log_dir / f"rank-{order.rank}.log")
        channel = DriverLine(wire, order.rank)
        _forward_warnings(channel if order.rank == 0 else None)
        job = _job(order.entry)
        meet = _leave_to_script if order.plan.task == SCRIPT else _join
        group = meet(order, line, store)
        wire.send(Ready())
        wire.send(job(order.plan, group, channel))
        if dist.is_initialized():
            dist.destroy_process_group()
        status = 0
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk of the log may be full
            traceback.print_exc()
        wire.send(_failure(order.rank, error))
        status = FAILED
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _leave_the_parent() -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's affair
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _redirect(log: Path) -> None:
    """Everything this rank and its libraries print goes into ``log``."""
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()


def _forward_warnings(channel: Channel | None) -> None:
    root = logging.getLogger()
    root.addHandler(logging.StreamHandler())
    if channel is not None:
        root.addHandler(_Forward(channel))
    logging.captureWarnings(True)


def _job(entry: str) -> Job:
    module, _, function = entry.partition(":")
    job: Job = getattr(importlib.import_module(module), function)
    return job


def _join(order: Order, line: socket.socket, listening: socket.socket | None) -> Group:
    """This rank's group, with its process group if there are peers."""
    placement = order.plan.placement
    device = _take_device(order)
    if placement.device == "cuda":
        _check_arithmetic(placement)
        _prefer_speed()
    if placement.world_size > 1:
        _stay_on_the_network(order, line)
        timeout = _last_resort(placement)
        dist.init_process_group(
            backend="nccl" if placement.device == "cuda" else "gloo",
            store=_store(order, listening, timeout),
            rank=order.rank,
            world_size=placement.world_size,
            timeout=timeout,
            device_id=device if placement.device == "cuda" else None,
        )
    return Group(rank=order.rank, world_size=placement.world_size, device=device)


def _leave_to_script(order: Order, line: socket.socket, listening: socket.socket | None) -> Group:
    """This rank's group, whose process group a script makes: told what torchrun would tell it.

    The ranks meet in a store of ours, which rank 0 serves as torchrun's agent would: one that torch
    makes listens on every interface of the machine.
    """
    placement = order.plan.placement
    device = _take_device(order)
    _stay_on_the_network(order, line)
    timeout = _last_resort(placement)
    if isinstance(order.store, Path):
        _STORES.append(meeting := FileStore(str(order.store), placement.world_size))
        if order.rank == 0:
            listening = socket.create_server(("127.0.0.1", 0))
            meeting.set("port", str(listening.getsockname()[1]))
        host, port = "127.0.0.1", int(meeting.get("port"))
        os.environ["LOCAL_WORLD_SIZE"] = str(placement.world_size)
    else:
        host, port = order.store
    if order.rank == 0:
        there = order.model_copy(update={"store": (host, port)})
        _STORES.append(_store(there, listening, timeout))
    os.environ |= {
        "RANK": str(order.rank),
        "LOCAL_RANK": str(order.local_rank),
        "WORLD_SIZE": str(placement.world_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    return Group(rank=order.rank, world_size=placement.world_size, device=device)


_STORES: list[Store] = []
"""Served by this process as long as it lives."""


def _take_device(order: Order) -> torch.device:
    """What this rank trains on."""
    placement = order.plan.placement
    if placement.visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = placement.visible_devices
    if placement.device == "cuda":
        device = torch.device("cuda", order.local_rank)
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # or a library sets the other by the machine's cores
    return torch.device("cpu")


def _last_resort(placement: Placement) -> timedelta:
    """How long a rank waits for its peers: the driver notices a stall first, and its cause."""
    return timedelta(seconds=2 * placement.stall_timeout + 60)


def _stay_on_the_network(order: Order, line: socket.socket) -> None:
    """Let Gloo and NCCL listen on one interface: the loopback, or that of the driver's network."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    if isinstance(order.store, Path):
        # All peers are on this machine: nobody else has to reach them, whatever a cluster's
        # profile says, and whatever the machine's name resolves to.
        if sys.platform == "linux":
            os.environ.update(dict.fromkeys(names, "lo"))
        return
    import psutil

    mine = line.getsockname()[0]
    for interface, addresses in psutil.net_if_addrs().items():
        if any(each.address == mine for each in addresses):
            for name in names:
                os.environ.setdefault(name, interface)


def _store(order: Order, listening: socket.socket | None, timeout: timedelta) -> Store:
    """Where the ranks find each other. Torch's own choice would listen on every interface."""
    world_size = order.plan.placement.world_size
    if isinstance(order.store, Path):
        return FileStore(str(order.store), world_size)
    if listening and order.rank != 0:
        listening.close()
        listening = None
    host, port = order.store
    return TCPStore(
        host,
        port,
        world_size,
        is_master=order.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listening.detach() if listening else None,
    )


def _check_arithmetic(placement: Placement) -> None:
    """torch would accept bf16 on GPUs before Ampere, and crawl or fail in the first convolution."""
    if placement.amp and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            "`amp`: this GPU does not compute in bf16 (Ampere and later do); train in float32 with "
            "`amp=False`"
        )


def _prefer_speed() -> None:
    """TensorFloat-32 for what is left in float32, and the fastest convolutions by trial.

    So no two runs on a GPU need to agree in every bit; those on a CPU do.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def _failure(rank: int, error: BaseException) -> Failure:
    kind: Literal["user_error", "disk", "out_of_memory", "exception"]
    if isinstance(error, UserError):  # it is about the input, not about a rank
        kind, origin = "user_error", ""
    elif trouble := disk_trouble(error):
        return Failure(kind="disk", rank=rank, message=trouble, traceback=_told(error))
    else:
        kind = "out_of_memory" if ran_out_of_memory(error) else "exception"
        origin = f"rank {rank}: {type(error).__name__}: "
    return Failure(
        kind=kind,
        rank=rank,
        message=f"{origin}{first_line(error)}",
        traceback=_told(error),
    )


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
