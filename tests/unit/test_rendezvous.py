"""The ranks of a group meet at the driver's port, whoever else calls and whatever they say."""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import psutil
import pytest

from knee_tune.workers.rendezvous import Rendezvous


@pytest.fixture
def rendezvous() -> Iterator[Rendezvous]:
    """Waits for two ranks of one node."""
    with closing(Rendezvous("127.0.0.1", nnodes=1, per_node=2)) as rendezvous:
        yield rendezvous


def call(rendezvous: Rendezvous) -> socket.socket:
    host, _, port = rendezvous.endpoint.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def greeting(rendezvous: Rendezvous, local_rank: Any = 0, **other: Any) -> bytes:
    said = {
        "type": "hello",
        "token": rendezvous.token,
        "node": "a",
        "local_rank": local_rank,
        "store": None,
    }
    return json.dumps(said | other).encode() + b"\n"


def gather(rendezvous: Rendezvous, *, seconds: float = 30.0) -> bool:
    """Whether all ranks are there in time."""
    deadline = time.monotonic() + seconds
    while not rendezvous.complete and time.monotonic() < deadline:
        rendezvous.listen(0.05)
    return rendezvous.complete


def hung_up(line: socket.socket, rendezvous: Rendezvous) -> bool:
    """Whether the driver closes the line; it listens meanwhile."""
    line.settimeout(0.0)
    for _ in range(200):
        rendezvous.listen(0.02)
        try:
            return line.recv(1) == b""
        except BlockingIOError:
            continue
        except ConnectionResetError:
            return True
    return False


def test_ranks_are_numbered_by_node_and_local_rank() -> None:
    with closing(Rendezvous("127.0.0.1", nnodes=2, per_node=2)) as rendezvous, ExitStack() as lines:
        for node, local_rank in (("b", 1), ("a", 1), ("b", 0), ("a", 0)):
            line = lines.enter_context(call(rendezvous))
            line.sendall(greeting(rendezvous, local_rank, node=node, store=["10.0.0.1", 4000]))
        assert gather(rendezvous)
        found = [(hello.node, hello.local_rank) for hello, _ in rendezvous.ranks]
        assert found == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
        assert rendezvous.ranks[0][0].store == ("10.0.0.1", 4000)


def test_a_greeting_may_come_byte_by_byte(rendezvous: Rendezvous) -> None:
    with call(rendezvous) as first, call(rendezvous) as second:
        second.sendall(greeting(rendezvous, 1))
        for byte in greeting(rendezvous):
            assert not rendezvous.complete
            first.sendall(bytes([byte]))
            rendezvous.listen(1.0)
        assert gather(rendezvous)


STRANGE: dict[str, Any] = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: driver\r\n\r\n",
    "no text": bytes(range(256)),
    "no UTF-8": b'{"type": "hello", "token": "\xff\xfe"}\n',
    "nothing but line ends": b"\n" * 100_000,
    "no line end": b"x" * 1_000_000,
    "brackets": b"[" * 1000 + b"\n",
    "a number": b"1" * 1000 + b"\n",
    "not an object": b"null\n",
    "another message": b'{"type": "ready"}\n',
    "token that is not ASCII": {"token": "\N{SNOWMAN}" * 32},
    "half a character": {"token": "\ud800"},
    "another token": {"token": "0" * 32},
    "empty token": {"token": ""},
    "no token": {"token": None},
    "token of another type": {"token": ["a"]},
    "more than asked for": {"more": 1},
    "too much": {"node": "a" * 2000},
    "a rank that is none": {"local_rank": 2},
    "a negative rank": {"local_rank": -1},
    "a rank beyond all numbers": {"local_rank": 10**400},
    "a fraction": {"local_rank": 0.5},
    "a store that is none": {"store": "here"},
}


@pytest.mark.parametrize("said", STRANGE)
def test_whoever_says_something_else_is_hung_up_on(rendezvous: Rendezvous, said: str) -> None:
    words = STRANGE[said]
    sent = words if isinstance(words, bytes) else greeting(rendezvous, **words)
    with call(rendezvous) as stranger:
        talk = threading.Thread(target=_send, args=(stranger, sent))
        talk.start()
        assert hung_up(stranger, rendezvous)
        talk.join(30)
    with call(rendezvous) as first, call(rendezvous) as second:
        first.sendall(greeting(rendezvous))
        second.sendall(greeting(rendezvous, 1))
        assert gather(rendezvous)


def _send(line: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # hung up on in the middle
        line.sendall(data)


def test_a_place_is_taken_once(rendezvous: Rendezvous) -> None:
    with call(rendezvous) as first, call(rendezvous) as again, call(rendezvous) as elsewhere:
        first.sendall(greeting(rendezvous))
        while not rendezvous.ranks:
            rendezvous.listen(1.0)
        again.sendall(greeting(rendezvous))
        elsewhere.sendall(greeting(rendezvous, 1, node="b"))
        assert hung_up(again, rendezvous)
        assert hung_up(elsewhere, rendezvous)
        assert [hello.local_rank for hello, _ in rendezvous.ranks] == [0]


def test_thousands_of_callers_keep_no_rank_out(rendezvous: Rendezvous) -> None:
    """Silent, half said, reset, gone: 3,000 of them, and two ranks in between."""
    files = psutil.Process().num_fds()
    most = 0
    with ExitStack() as kept:
        for number in range(3000):
            if number in (1000, 2000):
                rank = kept.enter_context(call(rendezvous))
                rank.sendall(greeting(rendezvous, number // 1000 - 1))
            stranger = call(rendezvous)
            match number % 4:
                case 0:
                    stranger.sendall(b'{"type": "hello", "tok')
                case 1:  # closes with a reset
                    stranger.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                case 2:
                    stranger.shutdown(socket.SHUT_WR)
            if number % 10 == 3:
                kept.callback(stranger.close)  # silent to the end
            else:
                stranger.close()
            rendezvous.listen(0.0)
            most = max(most, len(rendezvous._strangers))
        assert gather(rendezvous)
    rendezvous.close()
    for wire in rendezvous.wires:
        wire.socket.close()
    assert most <= 256
    assert psutil.Process().num_fds() <= files


def test_who_says_nothing_is_hung_up_on_after_a_while(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knee_tune.workers.rendezvous._PATIENCE", 0.1)
    with call(rendezvous) as silent:
        silent.sendall(b"{")
        assert hung_up(silent, rendezvous)


def test_no_file_left_to_open_is_no_end(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = socket.socket.accept
    failures = iter([OSError(24, "Too many open files"), ConnectionAbortedError(), None])

    def refusing(listener: socket.socket) -> Any:
        if error := next(failures, None):
            raise error
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refusing)
    with call(rendezvous) as first, call(rendezvous) as second:
        first.sendall(greeting(rendezvous))
        second.sendall(greeting(rendezvous, 1))
        assert gather(rendezvous)


def test_lines_block_where_they_inherit_that_the_listener_does_not(
    rendezvous: Rendezvous, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    accept = socket.socket.accept

    def inheriting(listener: socket.socket) -> tuple[socket.socket, Any]:
        line, address = accept(listener)
        os.set_blocking(line.fileno(), False)
        return line, address

    monkeypatch.setattr(socket.socket, "accept", inheriting)
    with call(rendezvous) as one, call(rendezvous) as two:
        one.sendall(greeting(rendezvous, 0))
        two.sendall(greeting(rendezvous, 1))
        assert gather(rendezvous)
        assert all(os.get_blocking(wire.socket.fileno()) for wire in rendezvous.wires)
