"""Worker groups on a Ray cluster: placement groups, with a host actor per rank. No other module
knows Ray.

Of Ray only Core is used: it places, starts on other nodes, and tells who died. Retry, reports and
supervision stay what they are with every other runner. Two traps: an actor takes its bundle's CPUs
only if it is told how many, and idle groups of another size hold the room that a new one needs.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.workers.protocol import (
    Callbacks,
    Failure,
    GroupRunner,
    Order,
    Outcome,
)
from knee_tune.workers.ray_host import Host, Store
from knee_tune.workers.rendezvous import LOOPBACK, Rendezvous, own_address
from knee_tune.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

Strategy = Literal["pack", "spread"]

_TICK = 0.5  # seconds between two looks at what is waited for

_ROOM = 1.0  # seconds for a cluster that has room to say so, before idle groups are given up

_SAID = 3.0  # the same, before people hear that they wait

_CALL = 10.0  # seconds for a cluster to take a call

_ANSWER = 5.0  # seconds for a host to answer, before its node is thought to be gone

_SETTINGS = {
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the first of a group's tells enough
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster of ours would report to Ray's makers
}
"""What Ray reads when it is imported, unless people have set it."""

_CLIENT = "ray://"
"""How addresses of Ray Client begin: the driver is on none of the cluster's nodes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Hosts:
    """The hosts of a group, in the order of ranks: those of one node follow each other."""

    placed: "PlacementGroup"
    actors: Sequence[Any]
    nodes: Sequence[str]  # the node of each

    @property
    def local_ranks(self) -> list[int]:
        return [self.nodes[:rank].count(node) for rank, node in enumerate(self.nodes)]

    @property
    def one_node(self) -> bool:
        return len(set(self.nodes)) == 1


class RayRunner(GroupRunner):
    """Runs every plan on hosts of a Ray cluster, one for each rank; hosts stay warm between plans.

    ``cluster``: the address of a running one, ``"auto"`` or ``ray://host:port``; None: the one that
    Ray knows of (RAY_ADDRESS, or one that runs on this machine), or else a new one on this machine
    alone. Made in the main thread, and the first in a process decides. ``address``: this machine's
    that the nodes reach (default: what Ray found, or with Ray Client what its name stands for); it
    is used once a rank is on another node. ``cpus``, and with ``device`` cuda ``gpus``, are what
    Ray sets aside for a rank; auto: GPUs only where the cluster has ``fewest_gpus``. Groups that
    find no room wait for it, ``run`` with them.
    """

    def __init__(
        self,
        entry: str,
        preload: Sequence[str] = (),
        *,
        cluster: str | None = None,
        address: str | None = None,
        strategy: Strategy = "pack",
        device: Literal["auto", "cpu", "cuda"] = "cpu",
        cpus: float = 1.0,
        gpus: float = 1.0,
        fewest_gpus: int = 1,
        launch_timeout: float = 300.0,
    ) -> None:
        self._entry, self._preload, self._strategy = entry, tuple(preload), strategy.upper()
        self._path = _own_path()
        self._launch_timeout = launch_timeout
        self._lock = threading.Lock()
        self._idle: list[_Hosts] = []
        self._connected = _connect(cluster)
        import ray

        client = ray.util.client.ray.is_connected()
        # A group that is on the driver's node alone needs no network.
        self._here = None if client else ray.get_runtime_context().get_node_id()
        self._address = address
        if address is not None or client:
            self._address = own_address(address)
        there = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if there.get("GPU", 0) >= fewest_gpus else "cpu"
        self._gpus = gpus if device == "cuda" else 0.0
        self._bundle = {"CPU": cpus} | ({"GPU": self._gpus} if self._gpus else {})

    def run(self, plan: Plan, callbacks: Callbacks) -> Outcome:
        """Run ``plan`` to its end; ``on_report`` is asked after every evaluation."""
        hosts = self._take(plan.placement.world_size, callbacks)
        try:
            with closing(self._rendezvous(hosts)) as rendezvous:
                started = self._started(hosts, rendezvous, callbacks)
                if isinstance(started, Failure):
                    return started
                rendezvous.close()
                for rank, wire in enumerate(rendezvous.wires):
                    with contextlib.suppress(OSError):  # gone: the supervisor finds out
                        wire.send(self._order(plan, hosts, rank, started))
                outcome = Supervisor(
                    rendezvous.wires,
                    stall_timeout=plan.placement.stall_timeout,
                    callbacks=callbacks,
                    local=False,
                    saves=isinstance(plan, TrainPlan),
                    signal_far=lambda pids, number: _signal(hosts, pids, number),
                ).run()
            return _explained(outcome, hosts) if isinstance(outcome, Failure) else outcome
        finally:
            with self._lock:
                self._idle.append(hosts)

    def give_back(self) -> None:
        """Give everything back that the cluster has set aside for groups that are idle."""
        self._give_up(self._idle_but(0))

    def close(self) -> None:
        """Give everything back, and leave the cluster."""
        self.give_back()
        if self._connected:
            import ray

            ray.shutdown()

    # Hosts

    def _take(self, size: int, callbacks: Callbacks) -> _Hosts:
        """Hosts for ``size`` ranks: idle ones, or new ones as soon as the cluster has room."""
        from ray.util.placement_group import placement_group, remove_placement_group

        if hosts := self._idle_of(size):
            return hosts
        # What waits is also what an autoscaler starts nodes for.
        placed = placement_group([self._bundle] * size, strategy=self._strategy)
        since, said = time.monotonic(), False
        try:
            while not placed.wait(_TICK):
                if hosts := self._idle_of(size):  # of a plan that has ended meanwhile
                    remove_placement_group(placed)
                    return hosts
                waited = time.monotonic() - since
                if waited > _ROOM:
                    self._give_up(self._idle_but(size))
                if waited > _SAID and not said:
                    said = True
                    callbacks.on_line(self._waits(size))
                callbacks.on_progress(0)
            return self._new(placed)
        except BaseException:
            remove_placement_group(placed)
            raise

    def _new(self, placed: "PlacementGroup") -> _Hosts:
        import ray
        from ray.util.placement_group import placement_group_table
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        nodes: dict[int, str] = placement_group_table(placed)["bundles_to_node_id"]
        bundles = sorted(nodes, key=lambda bundle: (nodes[bundle], bundle))
        actors = [
            ray.remote(Host)
            .options(
                num_cpus=self._bundle["CPU"],
                num_gpus=self._gpus,
                max_restarts=0,
                runtime_env={"env_vars": {"PYTHONPATH": self._path}} if self._path else None,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placed, placement_group_bundle_index=bundle
                ),
            )
            .remote(self._preload, str(Path.cwd()))
            for bundle in bundles
        ]
        return _Hosts(placed=placed, actors=actors, nodes=[nodes[bundle] for bundle in bundles])

    def _idle_of(self, size: int) -> _Hosts | None:
        """Idle hosts of a group of ``size``, all of which answer."""
        while True:
            with self._lock:
                found = [hosts for hosts in self._idle if len(hosts.actors) == size]
                if not found:
                    return None
                self._idle.remove(found[0])
            if not _gone(found[0]):
                return found[0]
            self._give_up(found[:1])

    def _idle_but(self, size: int) -> list[_Hosts]:
        """Take out the idle hosts of groups of any other size."""
        with self._lock:
            found = [hosts for hosts in self._idle if len(hosts.actors) != size]
            self._idle = [hosts for hosts in self._idle if len(hosts.actors) == size]
        return found

    def _give_up(self, groups: Sequence[_Hosts]) -> None:
        import ray
        from ray.util.placement_group import remove_placement_group

        for hosts in groups:
            for actor in hosts.actors:
                ray.kill(actor)
            remove_placement_group(hosts.placed)

    def _waits(self, size: int) -> str:
        import ray

        has, free = ray.cluster_resources(), ray.available_resources()
        asked = ", ".join(f"{count:g} {what}" for what, count in self._bundle.items())
        found = ", ".join(
            f"{free.get(what, 0):g} of {has.get(what, 0):g} {what}" for what in self._bundle
        )
        return f"waiting for room in Ray: {size} x ({asked}); free: {found}"

    # Ranks

    def _rendezvous(self, hosts: _Hosts) -> Rendezvous:
        import ray

        if set(hosts.nodes) == {self._here}:
            address = LOOPBACK
        else:
            address = self._address or ray.util.get_node_ip_address()
        return Rendezvous(address, nnodes=len(hosts.actors), per_node=1)

    def _started(
        self, hosts: _Hosts, rendezvous: Rendezvous, callbacks: Callbacks
    ) -> list[tuple[Store, str]] | Failure:
        """What every host said when its rank had called; why one has not."""
        import ray

        asked = [
            actor.start.remote(rendezvous.endpoint, rendezvous.token, rank, alone=hosts.one_node)
            for rank, actor in enumerate(hosts.actors)
        ]
        deadline = time.monotonic() + self._launch_timeout
        while True:
            done, waiting = ray.wait(asked, num_returns=len(asked), timeout=_TICK)
            for ref in done:
                try:
                    ray.get(ref)
                except Exception as error:
                    return _not_started(error, asked.index(ref), hosts, rendezvous)
            if not waiting:
                break
            if time.monotonic() > deadline:
                rank = asked.index(waiting[0])
                message = (
                    f"rank {rank}: Ray did not start its host on {_where(hosts.nodes[rank])} in "
                    f"{self._launch_timeout:g} s"
                )
                return Failure(kind="launch", rank=rank, message=message)
            callbacks.on_progress(0)
        while not rendezvous.complete:  # they have called: it is heard at once
            if time.monotonic() > deadline:
                return Failure(kind="launch", rank=0, message="a rank called, and was not heard")
            rendezvous.listen(_TICK)
        return list(ray.get(asked))

    def _order(
        self, plan: Plan, hosts: _Hosts, rank: int, started: Sequence[tuple[Store, str]]
    ) -> Order:
        """What ``rank`` is to do; it sees the GPUs of its group on its node, and no other."""
        if plan.placement.visible_devices is None:
            beside = zip(hosts.nodes, started, strict=True)
            devices = [seen for node, (_, seen) in beside if node == hosts.nodes[rank]]
            placement = plan.placement.model_copy(
                update={"visible_devices": ",".join(dict.fromkeys(devices)) if self._gpus else ""}
            )
            plan = plan.model_copy(update={"placement": placement})
        return Order(
            entry=self._entry,
            plan=plan,
            rank=rank,
            local_rank=hosts.local_ranks[rank],
            store=started[0][0],
        )


def _connect(cluster: str | None) -> bool:
    """Join ``cluster``; False if this process had joined one before. UserError if it cannot."""
    known = sys.modules.get("ray")
    if known and known.is_initialized():
        return False
    _refuse_a_dead_end(cluster)
    before = list(sys.path)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"`runner` ray: Ray cannot be imported ({first_line(error)}); pip install "
            "'knee-tune[ray]'"
        ) from None
    finally:
        sys.path[:] = before  # it would put a psutil of its own before everybody's
    try:
        with _signals_kept():
            ray.init(
                cluster, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
    except Exception as error:
        raise UserError(
            f"`ray_address` {cluster or 'auto'}: no Ray cluster that can be joined "
            f"({first_line(error)}); start one with `ray start --head`, or set RAY_AUTH_MODE=token "
            "if it asks for a token"
        ) from None
    return True


def _refuse_a_dead_end(cluster: str | None) -> None:
    """UserError unless somebody answers at ``cluster``: Ray itself takes minutes to find out."""
    if cluster in (None, "auto", "local"):
        return
    host, _, port = str(cluster).removeprefix(_CLIENT).partition("/")[0].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CALL).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"`ray_address` {cluster}: nobody answers there ({first_line(error)}); give auto, "
            "HOST:PORT or ray://HOST:PORT of a cluster that runs"
        ) from None


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Whatever happens inside, SIGTERM does afterwards what it did before."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _own_path() -> str:
    """What this process imports from beyond what every node's Python has, as PYTHONPATH."""
    common = tuple({sysconfig.get_path(which) for which in ("stdlib", "platlib", "purelib")})
    path = [each or str(Path.cwd()) for each in sys.path if not each.endswith(".zip")]
    return os.pathsep.join(each for each in path if not each.startswith(common))


def _signal(hosts: _Hosts, pids: Mapping[int, int], number: signal.Signals) -> None:
    import ray

    sent = [hosts.actors[rank].signal.remote(pid, int(number)) for rank, pid in pids.items()]
    if sent:
        ray.wait(sent, num_returns=len(sent), timeout=_ANSWER)  # a dead node answers nothing


# What died


def _gone(hosts: _Hosts) -> dict[int, str | None]:
    """The ranks whose hosts do not answer, with what Ray says of it; None: nothing yet."""
    import ray

    asked = [actor.alive.remote() for actor in hosts.actors]
    _, silent = ray.wait(asked, num_returns=len(asked), timeout=_ANSWER)
    found: dict[int, str | None] = {}
    for rank, ref in enumerate(asked):
        if ref in silent:
            found[rank] = None
            continue
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            found[rank] = str(error)
    return found


def _explained(failure: Failure, hosts: _Hosts) -> Failure:
    """``failure`` with its cause if that is a host or a node, which no rank can tell of."""
    if failure.kind == "launch":
        return failure.model_copy(update={"traceback": _errors(hosts, failure.rank)})
    if failure.kind not in ("lost", "stalled") or not (gone := _gone(hosts)):
        return failure
    rank, said = next(iter(gone.items()))
    node, until = hosts.nodes[rank], time.monotonic() + _ANSWER
    while (lives := _lives(node)) and time.monotonic() < until:
        time.sleep(_TICK)  # a host is missed at once, its node a moment later
    if lives and said is None:
        return failure  # slow or stopped, not gone
    where = _where(node)
    message = (
        f"rank {rank} was lost: its host process on {where} has ended (killed, or out of memory)"
        if lives
        else f"rank {rank} was lost with its node: {where} is gone"
    )
    return Failure(kind="lost", rank=rank, message=message, traceback=said or failure.traceback)


def _not_started(error: Exception, rank: int, hosts: _Hosts, rendezvous: Rendezvous) -> Failure:
    """Why a host did not start its rank."""
    import ray

    where, said = _where(hosts.nodes[rank]), str(error)
    missing = next((line for line in said.splitlines() if "ModuleNotFoundError" in line), None)
    if missing:
        message = f"{where} lacks what is installed here: {missing.strip()}"
        return Failure(kind="user_error", rank=rank, message=message, traceback=said)
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, OSError) and not disk_trouble(cause):
        message = (
            f"{where} does not reach this machine at {rendezvous.endpoint}; give the one of this "
            "machine's addresses at which it does with `address`"
        )
        return Failure(kind="user_error", rank=rank, message=message, traceback=said)
    message = f"rank {rank}: its host on {where} did not start ({first_line(cause)})"
    return Failure(kind="launch", rank=rank, message=message, traceback=said)


def _errors(hosts: _Hosts, rank: int) -> str:
    import ray

    try:
        return str(ray.get(hosts.actors[rank].errors.remote(), timeout=_ANSWER))
    except ray.exceptions.RayError as error:
        return str(error)


def _lives(node: str) -> bool:
    import ray

    return any(each["NodeID"] == node and each["Alive"] for each in ray.nodes())


def _where(node: str) -> str:
    """Name a node for people: by its address, which Ray keeps of dead ones too."""
    import ray

    found = (each["NodeManagerAddress"] for each in ray.nodes() if each["NodeID"] == node)
    return f"the Ray node {next(found, node)}"
