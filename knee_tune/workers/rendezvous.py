"""The driver's port: the ranks of a group call there, and whoever else reaches it.

Anybody may call and say, or not say, whatever they like: it costs the driver a bounded number of
sockets, a kilobyte each and a few seconds, and no rank its place.
"""

import hmac
import ipaddress
import secrets
import selectors
import socket
import time

from knee_tune.errors import UserError, first_line
from knee_tune.workers.protocol import Hello, Wire, notice_a_dead_peer

LOOPBACK = "127.0.0.1"

_PATIENCE = 10.0  # seconds for a caller to say who it is

_ANSWER = 60.0  # seconds for the driver's machine to take a call

_MOST_STRANGERS = 256  # callers that have not said so, at a time


class Rendezvous:
    """A port at ``address`` where ``per_node`` ranks of each of ``nnodes`` nodes show ``token``."""

    def __init__(self, address: str, *, nnodes: int, per_node: int) -> None:
        self.token = secrets.token_hex(16)
        self._nnodes, self._per_node = nnodes, per_node
        self._nodes: dict[str, dict[int, tuple[Hello, Wire]]] = {}
        self._strangers: dict[Wire, float] = {}  # and when they called, oldest first
        self._listener = _listener(address)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def close(self) -> None:
        """Listen no more, and hang up on whoever has called and is no rank of a complete group."""
        self._listener.close()
        self._selector.close()
        left = [*self._strangers] if self.complete else [*self._strangers, *self.wires]
        for wire in left:
            wire.socket.close()

    @property
    def endpoint(self) -> str:
        """The ``address:port`` that ranks call."""
        address, port = self._listener.getsockname()[:2]
        return f"{address}:{port}"

    @property
    def complete(self) -> bool:
        """Whether every rank has called."""
        return sum(map(len, self._nodes.values())) == self._nnodes * self._per_node

    @property
    def ranks(self) -> list[tuple[Hello, Wire]]:
        """The ranks that have called, by node and local rank: who each is, and its line."""
        return [node[local] for _, node in sorted(self._nodes.items()) for local in sorted(node)]

    @property
    def wires(self) -> list[Wire]:
        """The lines of the ranks that have called, in the same order."""
        return [wire for _, wire in self.ranks]

    def listen(self, timeout: float) -> None:
        """Take in who calls and what is said in ``timeout`` seconds; returns after the first."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            if key.fileobj is self._listener:
                self._accept()
            elif key.data in self._strangers:  # not turned away just now
                self._hear(key.data)
        late = time.monotonic() - _PATIENCE
        for wire in [wire for wire, since in self._strangers.items() if since < late]:
            self._turn_away(wire)

    def _accept(self) -> None:
        if len(self._strangers) == _MOST_STRANGERS:
            self._turn_away(next(iter(self._strangers)))
        try:
            line, _ = self._listener.accept()
        except OSError:  # it has left again, or this process may open no more files
            return
        line.setblocking(True)  # on macOS it inherits what the listener is
        notice_a_dead_peer(line)
        wire = Wire(line)
        self._strangers[wire] = time.monotonic()
        self._selector.register(wire.socket, selectors.EVENT_READ, wire)

    def _hear(self, wire: Wire) -> None:
        try:
            hello = wire.receive_hello()
        except (OSError, ValueError):
            return self._turn_away(wire)
        if hello is None:
            return None
        if not self._expects(hello):
            return self._turn_away(wire)
        self._selector.unregister(wire.socket)
        del self._strangers[wire]
        self._nodes.setdefault(hello.node, {})[hello.local_rank] = (hello, wire)
        return None

    def _expects(self, hello: Hello) -> bool:
        """Whether this is one of the ranks that have not called yet."""
        if not hmac.compare_digest(hello.token.encode(errors="replace"), self.token.encode()):
            return False
        node = self._nodes.get(hello.node, {} if len(self._nodes) < self._nnodes else None)
        return (
            node is not None
            and hello.local_rank in range(self._per_node)
            and hello.local_rank not in node
        )

    def _turn_away(self, wire: Wire) -> None:
        self._selector.unregister(wire.socket)
        del self._strangers[wire]
        wire.socket.close()


def call(endpoint: str) -> socket.socket:
    """A rank's line to the driver who listens at ``endpoint``; OSError if nobody does."""
    host, _, port = endpoint.rpartition(":")
    line = socket.create_connection((host, int(port)), timeout=_ANSWER)
    line.settimeout(None)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    notice_a_dead_peer(line)
    return line


def listen_beside(line: socket.socket) -> socket.socket:
    """A socket that listens at this machine's address on the driver's network, at a free port."""
    return socket.create_server((line.getsockname()[0], 0), family=line.family)


def own_address(name: str | None) -> str:
    """The one of this machine's addresses that ``name`` stands for; by default its host name.

    UserError if that is none, or nothing that other machines can reach.
    """
    asked, name = name is not None, socket.gethostname() if name is None else name
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
        address = str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])
        _listener(address).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"`address` {name}: no address of this machine ({first_line(error)}); give the one at "
            "which the other machines reach it"
        ) from None
    kind = ipaddress.ip_address(address)
    if kind.is_unspecified or (kind.is_loopback and not asked):
        raise UserError(
            f"`address` {name}: other machines cannot reach {address}; give the one of this "
            "machine's addresses at which they do"
        )
    return address


def _listener(address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=_MOST_STRANGERS)
    listener.setblocking(False)
    return listener
