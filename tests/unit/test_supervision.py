"""The line between driver and rank, and how the driver finds the root cause: real sockets."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from knee_tune.config.recipe import Spec
from knee_tune.workers import supervisor
from knee_tune.workers.protocol import (
    QUIET,
    Alive,
    Callbacks,
    Decision,
    Done,
    Exit,
    Failure,
    Inquiry,
    Outcome,
    Position,
    Progress,
    Ready,
    Report,
    Started,
    Wire,
)
from knee_tune.workers.supervisor import Supervisor


@pytest.fixture
def line() -> Iterator[tuple[Wire, Wire]]:
    """The driver's end and the rank's end."""
    driver, rank = socket.socketpair()
    with driver, rank:
        yield Wire(driver), Wire(rank)


def test_what_crosses_is_one_json_object_per_line(line: tuple[Wire, Wire]) -> None:
    driver, rank = line
    rank.send(Report(step=3, total_steps=9, metrics={"ppl": 8.5}, seconds=1.25))
    (text,) = driver.socket.recv(4096).splitlines()
    assert json.loads(text)["metrics"] == {"ppl": 8.5}


def test_a_line_that_a_killed_rank_did_not_finish_is_dropped(line: tuple[Wire, Wire]) -> None:
    driver, rank = line
    rank.socket.sendall(b'{"type": "progress", "st')
    assert driver.receive() == []
    rank.socket.sendall(b"\n")
    rank.send(Exit(code=-9))
    rank.socket.close()
    assert driver.receive() == [Exit(code=-9)]
    assert driver.receive() is None


def test_a_rank_reads_answers_until_the_driver_hangs_up(line: tuple[Wire, Wire]) -> None:
    driver, rank = line
    driver.send(Decision(stop=True))
    driver.send(Inquiry())
    driver.hang_up()
    assert list(rank.answers()) == [Decision(stop=True), Inquiry()]


class Ranks:
    """Two ranks that say what the test tells them to, under a real supervisor."""

    def __init__(self) -> None:
        pairs = [socket.socketpair(), socket.socketpair()]
        self.wires = [Wire(rank) for _, rank in pairs]
        self._driver = [Wire(driver) for driver, _ in pairs]

    def say(self, rank: int, *values: Spec) -> None:
        for value in values:
            self.wires[rank].send(value)

    def supervise(
        self,
        stall_timeout: float = 60.0,
        callbacks: Callbacks = QUIET,
        *,
        saves: bool = False,
    ) -> Outcome:
        return Supervisor(
            self._driver, stall_timeout=stall_timeout, callbacks=callbacks, local=False, saves=saves
        ).run()

    def end(self, rank: int, code: int) -> None:
        self.say(rank, Exit(code=code))
        self.hang_up()

    def hang_up(self) -> None:
        for wire in self.wires:
            wire.socket.close()


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.hang_up()


ECHOES = [
    "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234",
    "RuntimeError: Read error [127.0.0.1]:1234: Connection reset by peer",
    "DistNetworkError: failed to recv, got 0 bytes",
    "DistBackendError: NCCL error in: NCCLUtils.cpp:77, ncclRemoteError: A call failed",
]


@pytest.mark.parametrize("echo", ECHOES)
def test_a_lost_peer_is_an_echo_even_if_it_is_heard_first(
    ranks: Ranks, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_ECHOES", 60.0)  # the cause ends the waiting, however late
    ranks.say(0, Failure(kind="exception", rank=0, message=echo))
    threading.Timer(0.5, ranks.end, args=[1, -11]).start()
    outcome = ranks.supervise()
    assert isinstance(outcome, Failure)
    assert outcome.message == "rank 1 was killed by SIGSEGV (signal 11)"


@pytest.mark.parametrize("echo", ECHOES)
def test_a_rank_that_vanished_is_named_and_not_who_noticed(ranks: Ranks, echo: str) -> None:
    ranks.say(0, Failure(kind="exception", rank=0, message=echo))
    ranks.say(1, Started(pid=1))
    threading.Timer(0.1, ranks.wires[1].socket.close).start()
    outcome = ranks.supervise()
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.message) == ("lost", "rank 1 vanished")


@pytest.mark.parametrize("echo", [None, *ECHOES[:2]])
def test_a_rank_without_a_heartbeat_is_named_though_its_peers_wait_or_fail(
    ranks: Ranks, echo: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 beats and does nothing else: a long step, a compilation, a collective."""
    monkeypatch.setattr(supervisor, "_BEATS", 1.0)
    monkeypatch.setattr(supervisor, "_ECHOES", 0.0)
    monkeypatch.setattr(supervisor, "_TICK", 0.05)
    ranks.say(0, Ready())
    ranks.say(1, Ready(), Alive())
    if echo is not None:
        ranks.say(0, Failure(kind="exception", rank=0, message=echo))
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            ranks.say(0, Alive())

    beating = threading.Thread(target=beat)
    beating.start()
    outcome = ranks.supervise()
    ended.set()
    beating.join()
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.rank) == ("lost", 1)
    assert outcome.message.startswith("rank 1 had no heartbeat for ")


def test_heartbeats_are_no_sign_of_life_of_the_job(ranks: Ranks) -> None:
    for rank in (0, 1):
        ranks.say(rank, Ready(), Alive())
    outcome = ranks.supervise(stall_timeout=0.3)
    assert isinstance(outcome, Failure)
    assert outcome.kind == "stalled"


def test_the_first_of_two_causes_counts(ranks: Ranks) -> None:
    ranks.say(1, Failure(kind="exception", rank=1, message="rank 1: KeyError: 'a'"))
    threading.Timer(0.05, ranks.end, args=[0, 1]).start()
    outcome = ranks.supervise()
    assert isinstance(outcome, Failure)
    assert outcome.rank == 1


def test_trouble_after_the_job_is_no_trouble(ranks: Ranks) -> None:
    done = Done(state="complete", step=5)
    ranks.say(0, done, Exit(code=-6))
    ranks.say(1, done)
    ranks.hang_up()
    assert ranks.supervise() == done


def test_of_two_silent_ranks_the_one_outside_the_collective_hangs(ranks: Ranks) -> None:
    def answer(rank: int, *, waits: bool) -> None:
        for answer in ranks.wires[rank].answers():
            assert isinstance(answer, Inquiry)
            ranks.say(rank, Position(step=7, waits=waits, stack=f"stack of {rank}"))
        ranks.wires[rank].socket.shutdown(socket.SHUT_RDWR)

    for rank, waits in ((0, True), (1, False)):
        ranks.say(rank, Ready(), Progress(step=7))
        threading.Thread(target=answer, args=[rank], kwargs={"waits": waits}).start()
    began = time.monotonic()
    outcome = ranks.supervise(stall_timeout=0.3)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.rank) == ("stalled", 1)
    assert outcome.traceback.index("stack of 1") < outcome.traceback.index("stack of 0")
    assert time.monotonic() - began < 2


def interrupted(ranks: Ranks, told: list[int], *, times: int = 1) -> None:
    """The driver of two ranks that train is interrupted: so often it is told of a step."""

    def on_progress(step: int) -> None:
        told.append(step)
        if len(told) <= times:
            raise KeyboardInterrupt

    callbacks = Callbacks(on_progress=on_progress)
    ranks.say(0, Progress(step=7))
    with pytest.raises(KeyboardInterrupt):
        ranks.supervise(callbacks=callbacks, saves=True)


def test_an_interrupted_run_saves_its_state_before_it_ends(ranks: Ranks) -> None:
    told = list[int]()

    def save() -> None:
        assert next(iter(ranks.wires[0].answers())) == Decision(stop=True, save=True)
        ranks.say(0, Done(state="stopped", step=9))

    rank = threading.Thread(target=save)
    rank.start()
    interrupted(ranks, told)
    rank.join()
    assert told == [7, 9]  # its steps are counted


def test_a_second_interrupt_waits_for_nothing(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_SAVE", 600.0)
    ranks.say(0, Progress(step=7), Progress(step=8))
    interrupted(ranks, told := list[int](), times=2)
    assert told == [7, 8]


def test_a_rank_that_does_not_answer_an_interrupt_is_ended(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_SAVE", 0.1)
    interrupted(ranks, told := list[int]())
    assert told == [7]


@pytest.mark.parametrize("more", [(), (Done(state="complete", step=7),)])
def test_an_interrupt_is_what_is_raised_also_if_the_rank_ends_in_the_same_breath(
    ranks: Ranks, more: tuple[Spec, ...]
) -> None:
    def interrupt(step: int) -> None:
        raise KeyboardInterrupt

    callbacks = Callbacks(on_progress=interrupt)
    ranks.say(0, Progress(step=0), *more, Exit(code=0))
    ranks.hang_up()
    with pytest.raises(KeyboardInterrupt):
        ranks.supervise(callbacks=callbacks)
