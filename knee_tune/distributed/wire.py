"""The line between the driver and one rank: JSON values, one per text line, over a socket.

Besides the messages of :mod:`~knee_tune.distributed.protocol` a few more cross here which no job
and no driver code sees: the order that starts a rank and what supervision needs.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from knee_tune.distributed.protocol import Decision, Done, Failure, Line, Progress, Report
from knee_tune.planning.plan import Plan
from knee_tune.specs.base import Spec


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
    """The driver asks a silent rank what it is doing."""

    type: Literal["inquiry"] = "inquiry"


class Hello(Spec):
    """What a rank that connects by TCP says first."""

    type: Literal["hello"] = "hello"
    token: str
    node: str = Field(description="the same for all ranks of one node, and for no other")
    local_rank: int
    store: tuple[str, int] | None = Field(
        description="where the group's store will listen if this is its rank 0; None: nowhere"
    )


class Started(Spec):
    """The rank leads its own session now; ``pid`` is also its process group."""

    type: Literal["started"] = "started"
    pid: int


class Ready(Spec):
    """Imports and group are there, the job begins: from here on silence counts as a stall."""

    type: Literal["ready"] = "ready"


class Whereabouts(Spec):
    """The answer to an inquiry."""

    type: Literal["whereabouts"] = "whereabouts"
    step: int = Field(description="last step the job gave as progress or report")
    waits: bool = Field(description="whether it is inside a collective, waiting for its peers")
    stack: str


class Exit(Spec):
    """Said by the rank's parent process after the rank has ended."""

    type: Literal["exit"] = "exit"
    code: int = Field(description="exit code; minus the number of the signal that killed it")


FromRank = Report | Progress | Line | Failure | Done | Hello | Started | Ready | Whereabouts | Exit

_FROM_RANK: TypeAdapter[FromRank] = TypeAdapter(Annotated[FromRank, Field(discriminator="type")])
_ANSWER: TypeAdapter[Decision | Inquiry] = TypeAdapter(Decision | Inquiry)


_LONGEST_HELLO = 1024  # bytes


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
        """Driver: how a caller, who may be anybody, introduces itself; None: not yet to the end.

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
        """Driver: what one read brings, perhaps nothing yet; None at the end of the line."""
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
        """Rank: the order; EOFError if the driver hung up before it."""
        return Order.model_validate_json(self._read_line())

    def answers(self) -> Iterator[Decision | Inquiry]:
        """Rank: what the driver says, until it hangs up or dies."""
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
