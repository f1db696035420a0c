"""The seam between the driver and a worker group: a plan goes in, reports and an outcome come out.

Everything that crosses is JSON, never pickle: one value per text line, over a socket per rank
(:class:`Wire`). What jobs and the driver's code see comes first; below it are the order that starts
a rank and what supervision needs.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from knee_tune.config.recipe import Spec
from knee_tune.errors import one_line
from knee_tune.plans.plan import Plan


class Report(Spec):
    """Validation metrics that rank 0 measured after ``step``; it waits for a decision.

    Of a fused run ``metrics`` are means over the replicas that still train.
    """

    type: Literal["report"] = "report"
    step: int
    total_steps: int
    metrics: dict[str, float] = Field(description="finite values only")
    seconds: float = Field(description="training time of this run so far, this attempt")
    replicas: dict[str, tuple[float | None, ...]] = Field(
        default_factory=dict,
        description="of a fused run: every metric of every replica of the plan; None: it has left",
    )


class Decision(Spec):
    """The driver's answer to a report."""

    stop: bool
    save: bool = Field(
        default=False,
        description="the driver was interrupted: save the state and end, wherever the run is",
    )


class Progress(Spec):
    """A sign of life of one rank between reports."""

    type: Literal["progress"] = "progress"
    step: int


Words = Annotated[str, AfterValidator(one_line)]
"""What a rank says, of data and libraries too: shown, kept and sent on as one line."""


class Line(Spec):
    """A line that a rank wants people to read; the driver prints it."""

    type: Literal["line"] = "line"
    text: Words


class Failure(Spec):
    """The reason why a rank or a group died: the root cause, not its echoes on other ranks."""

    type: Literal["failure"] = "failure"
    kind: Literal[
        "user_error",  # what people must fix
        "exception",
        "out_of_memory",
        "exit",  # with a code, before its job was done
        "stalled",
        "signal",
        "lost",  # its line ended without a word, or it only says that another rank is gone
        "launch",  # it never lived
        "disk",  # full, read-only or broken
    ]
    rank: int
    message: Words
    traceback: str = ""

    @property
    def by_machine(self) -> bool:
        """Whether the machine ended it, not its code or its data: another start may well do.

        Memory that ran out and was seen to is not among it, for the same model needs as much again;
        nor is a stall, which may be a mistake.
        """
        return self.kind in ("signal", "lost", "launch", "disk")

    @property
    def for_all(self) -> bool:
        """Whether every other run would fail for the same: people must fix something."""
        return self.kind in ("user_error", "disk")


JobEnd = Literal["complete", "stopped", "diverged"]
"""How a job ended that its ranks brought to an end."""


class ReplicaDone(Spec):
    """The end of one replica of a fused run."""

    state: JobEnd
    step: int = Field(description="last step trained")
    first_step: int = Field(
        default=0,
        description="up to here another replica of the run was the same, and was trained for both",
    )
    reason: Words = ""
    metrics: dict[str, float] = Field(default_factory=dict, description="final, if complete")
    weights: str | None = Field(default=None, description="its weights file, if complete")


class Done(Spec):
    """The result of a job that rank 0 has finished.

    A fused run is complete when one of its replicas is.
    """

    type: Literal["done"] = "done"
    state: JobEnd
    step: int = Field(default=0, description="last step trained")
    first_step: int = Field(default=0, description="the step whose state this attempt started from")
    reason: Words = ""
    result: dict[str, Any] = Field(default_factory=dict, description="final metrics, or facts")
    replicas: tuple[ReplicaDone, ...] = Field(
        default=(), description="of a fused run, in the order of its plan"
    )

    @property
    def steps_trained(self) -> int:
        """Steps that this attempt trained itself."""
        return self.step - self.first_step


Outcome = Done | Failure


class Channel(Protocol):
    """A rank's line to the driver, as a job sees it."""

    def report(self, report: Report) -> Decision:
        """Send metrics and wait for the decision (rank 0 only)."""
        ...

    def progress(self, step: int) -> None:
        """Give a sign of life; cheap enough to call at every step (rate-limited inside)."""
        ...

    def line(self, text: str) -> None:
        """Say something to the people who watch."""
        ...

    @property
    def interrupted(self) -> bool:
        """Whether the driver wants the state saved and the run ended (rank 0 alone is told)."""
        return False


def _go_on(report: Report) -> Decision:
    return Decision(stop=False)


def _ignore(what: str | int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What the driver does with reports, lines and signs of life of a group; by default nothing."""

    on_report: Callable[[Report], Decision] = _go_on
    on_line: Callable[[str], None] = _ignore
    on_progress: Callable[[int], None] = _ignore


QUIET = Callbacks()
"""Nothing is done with them, and no run is stopped."""


class GroupRunner(Protocol):
    """Runs plans, each with a group of ranks of its own; several threads may do so side by side.

    ``run`` never raises for what a rank does: exception, exit, signal and stall come back as
    :class:`Failure` with the root cause, and no process of the group survives the call. A
    ``KeyboardInterrupt`` in the driver's thread, or an exception of a callback, ends the group
    and propagates; a run that trains saves its state before, if that takes it but seconds. A second
    ``KeyboardInterrupt`` waits for nothing.
    """

    def run(self, plan: Plan, callbacks: Callbacks) -> Outcome:
        """Run ``plan`` to its end; ``on_report`` is asked after every evaluation."""
        ...

    def close(self) -> None:
        """End every helper process of the runner."""
        ...


class Order(Spec):
    """The first thing a rank reads: who it is and what to do."""

    type: Literal["order"] = "order"
    entry: str = Field(description="the job, as module:function")
    plan: Plan
    rank: int
    local_rank: int
    store: Path | tuple[str, int] = Field(
        description="where the group meets: a file on one machine, else rank 0's address and port"
    )


class Inquiry(Spec):
    """The question of the driver what a silent rank is doing."""

    type: Literal["inquiry"] = "inquiry"


class Hello(Spec):
    """The first message of a rank that connects by TCP."""

    type: Literal["hello"] = "hello"
    token: str
    node: str = Field(description="the same for all ranks of one node, and for no other")
    local_rank: int
    store: tuple[str, int] | None = Field(
        description="where the group's store will listen if this is its rank 0; None: nowhere"
    )


class Started(Spec):
    """A sign that the rank leads its own session now; ``pid`` is also its process group."""

    type: Literal["started"] = "started"
    pid: int


class Ready(Spec):
    """A sign that the job begins, imports and group are there: from here on silence is a stall."""

    type: Literal["ready"] = "ready"


class Alive(Spec):
    """A heartbeat of a rank's process, whatever its job is doing."""

    type: Literal["alive"] = "alive"


class Position(Spec):
    """Where a rank is: the answer to an inquiry."""

    type: Literal["position"] = "position"
    step: int = Field(description="last step the job gave as progress or report")
    waits: bool = Field(description="whether it is inside a collective, waiting for its peers")
    stack: str


class Exit(Spec):
    """The end of a rank, told by its parent process."""

    type: Literal["exit"] = "exit"
    code: int = Field(description="exit code; minus the number of the signal that killed it")


FromRank = (
    Report | Progress | Line | Failure | Done | Hello | Started | Ready | Alive | Position | Exit
)

_FROM_RANK: TypeAdapter[FromRank] = TypeAdapter(Annotated[FromRank, Field(discriminator="type")])

_ANSWER: TypeAdapter[Decision | Inquiry] = TypeAdapter(Decision | Inquiry)

_LONGEST_HELLO = 1024  # bytes

_NOTICE_A_DEAD_PEER = {
    "TCP_KEEPIDLE": 15,  # seconds
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 45_000,  # milliseconds
}


def notice_a_dead_peer(sock: socket.socket) -> None:
    """Have the system ask after the other machine of a TCP line: it ends after 45 s of silence."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _NOTICE_A_DEAD_PEER.items():
        if (option := getattr(socket, name, None)) is not None:  # which not every system has
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Wire:
    """One end of the line. Sending is safe from several threads; one thread reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._sending = threading.Lock()
        self._rest = b""  # of a line not yet complete
        self._reader: BufferedIOBase | None = None

    def send(self, value: Spec) -> None:
        """Send one value; OSError if the other end is gone."""
        with self._sending:
            self.socket.sendall(value.model_dump_json().encode() + b"\n")

    def hang_up(self) -> None:
        """Say that nothing more will come: the other end reads the end of the line."""
        with contextlib.suppress(OSError):  # the other end was quicker
            self.socket.shutdown(socket.SHUT_WR)

    def receive_hello(self) -> Hello | None:
        """Return (driver) the greeting of a caller, who may be anybody; None: not yet to its end.

        ValueError if it says anything else, OSError if its line broke.
        """
        data = self.socket.recv(_LONGEST_HELLO - len(self._rest))
        self._rest += data
        line, end, rest = self._rest.partition(b"\n")
        if end:
            self._rest = rest
            return Hello.model_validate_json(line)
        if not data or len(self._rest) == _LONGEST_HELLO:
            raise ValueError("no greeting")
        return None

    def receive(self) -> list[FromRank] | None:
        """Return (driver) what one read brings, perhaps nothing; None at the end of the line."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages = []
        for line in lines:
            try:
                messages.append(_FROM_RANK.validate_json(line))
            except ValidationError:
                continue  # cut short: the rank was killed while it wrote
        return messages

    def read_order(self) -> Order:
        """Return (rank) the order; EOFError if the driver hung up before it."""
        return Order.model_validate_json(self._read_line())

    def answers(self) -> Iterator[Decision | Inquiry]:
        """Yield (rank) what the driver says, until it hangs up or dies."""
        while True:
            try:
                yield _ANSWER.validate_json(self._read_line())
            except (EOFError, OSError):
                return

    def _read_line(self) -> bytes:
        if not self._reader:
            self._reader = self.socket.makefile("rb")
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the line ended")
        return line
