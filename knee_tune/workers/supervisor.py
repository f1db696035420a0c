"""Watches over one worker group from the driver: reports, stalls, root causes, the end."""

import contextlib
import os
import re
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from knee_tune.errors import HomeGoneError
from knee_tune.workers.protocol import (
    Alive,
    Callbacks,
    Decision,
    Done,
    Exit,
    Failure,
    FromRank,
    Inquiry,
    Line,
    Outcome,
    Position,
    Progress,
    Ready,
    Report,
    Started,
    Wire,
)

_TICK = 0.5  # seconds between two looks at the clock

_CAUSES = 0.2  # seconds in which other ranks may tell the root cause

_ECHOES = 2.0  # the same, while all that is known are echoes of another rank's death

_BEATS = 50.0  # seconds without a heartbeat after which a rank's process counts as gone

_ANSWER = 1.0  # seconds for a silent rank to say what it is doing

_START = 300.0  # seconds until a rank has imported everything and joined its group

_LEAVE = 5.0  # seconds for a rank to go by itself once its job is done

_SAVE = 10.0  # seconds for an interrupted run to save its state

_TERMINATE = 1.0  # seconds between SIGTERM and SIGKILL

_ECHO = re.compile(
    r"connection (was likely )?(closed|reset|refused|aborted)|broken pipe|pair closure"
    r"|got 0 bytes|socket closed|remote process exit|ncclRemoteError|ncclSystemError",
    re.IGNORECASE,
)


@dataclass(eq=False)
class _Rank:
    """What the driver knows of one rank."""

    number: int
    wire: Wire
    pid: int = 0
    ready: bool = False
    trains: bool = False
    heard: float = 0.0
    """When its job last gave a sign of life."""
    beaten: float | None = None
    """When its process did; None before its first heartbeat."""
    failed: bool = False
    ended: bool = False
    done: Done | None = None
    position: Position | None = None
    unheard: deque[FromRank] = field(default_factory=deque)


class Supervisor:
    """Watches one group, given a wire per rank on which the order has been sent.

    ``local`` says that the ranks are processes of this machine and may be killed by pid; ranks of
    other machines end themselves when their line does, and are killed by ``signal_far``, given
    their pids by rank, if there is who can. ``saves``: the job is a run that can save
    its state, which it does before an interrupt ends it.
    """

    def __init__(
        self,
        wires: Sequence[Wire],
        *,
        stall_timeout: float,
        callbacks: Callbacks,
        local: bool,
        saves: bool = False,
        signal_far: Callable[[Mapping[int, int], signal.Signals], None] | None = None,
    ) -> None:
        self._ranks = [_Rank(number, wire) for number, wire in enumerate(wires)]
        self._stall_timeout = stall_timeout
        self._callbacks = callbacks
        self._local, self._saves = local, saves
        self._signal_far = signal_far
        self._failures: list[Failure] = []  # in order of arrival
        self._clock = 0.0  # seconds spent waiting for ranks: callbacks and suspends do not count
        self._selector = selectors.DefaultSelector()
        for rank in self._ranks:
            self._selector.register(rank.wire.socket, selectors.EVENT_READ, rank)

    def run(self) -> Outcome:
        """The group's outcome. Whatever happens, no rank outlives this call."""
        try:
            return self._watch()
        except HomeGoneError:
            raise  # there is nowhere to save
        except BaseException:
            self._let_save()
            raise
        finally:
            self._end()

    def _watch(self) -> Outcome:
        while not self._failures:
            self._listen(_TICK)
            if all(rank.done for rank in self._ranks):
                self._listen_until(lambda: all(rank.ended for rank in self._ranks), _LEAVE)
                assert self._ranks[0].done
                return self._ranks[0].done
            if any(self._silence(rank) > self._patience(rank) for rank in self._ranks):
                return self._stalled()
            self._miss_beats()
        self._listen_until(lambda: False, _CAUSES)
        self._listen_until(lambda: not all(map(_echoes, self._failures)), _ECHOES)
        since = self._clock
        self._listen_until(lambda: self._is_explained(since), _BEATS)
        self._miss_beats()
        return self._cause()

    def _cause(self) -> Failure:
        """The first failure that is not an echo of another one; a rank that vanished is none."""
        cause = min(self._failures, key=_echoes)
        return cause.model_copy(update={"kind": "lost"}) if _echoes(cause) else cause

    def _is_explained(self, since: float) -> bool:
        """Whether more is known than echoes, or every other rank was seen to live ``since``."""
        return min(map(_echoes, self._failures)) < _ONLY_AN_ECHO or all(
            rank.failed or rank.done or rank.beaten is None or rank.beaten > since
            for rank in self._ranks
        )

    def _miss_beats(self) -> None:
        """Note every rank whose process is stopped, or whose machine is gone.

        One of this machine that can be seen to run lives, whatever keeps its thread from beating.
        """
        for rank in self._ranks:
            if rank.beaten is None or rank.done or rank.failed:
                continue
            silence = self._clock - rank.beaten
            if silence > _BEATS and not (self._local and _runs(rank.pid)):
                what = "is stopped" if self._local else "is stopped, or its machine is gone"
                message = f"rank {rank.number} had no heartbeat for {silence:.0f} s: it {what}"
                self._fail(rank, Failure(kind="lost", rank=rank.number, message=message))

    # Listening

    def _listen(self, timeout: float) -> None:
        """Take in what the ranks say within ``timeout`` seconds; returns after the first."""
        before = time.monotonic()
        ready = self._selector.select(timeout)
        self._clock += min(time.monotonic() - before, timeout)
        for key, _ in ready:
            rank: _Rank = key.data
            messages = rank.wire.receive()
            if messages is None:
                self._end_of_line(rank)
                continue
            for message in messages:
                if isinstance(message, Alive):
                    rank.beaten = self._clock
                else:
                    rank.heard = self._clock
                    rank.unheard.append(message)
        self._hear_all()

    def _hear_all(self) -> None:
        for rank in self._ranks:
            while rank.unheard:  # a callback may raise: the rest is for who listens then
                self._hear(rank, rank.unheard.popleft())

    def _listen_until(self, satisfied: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not satisfied() and self._selector.get_map():
            if (left := deadline - time.monotonic()) <= 0:
                return
            self._listen(left)

    def _hear(self, rank: _Rank, message: FromRank) -> None:
        match message:
            case Started(pid=pid):
                rank.pid = pid
            case Ready():
                rank.ready = True
            case Report():
                rank.trains = True
                if not self._failures:
                    self._answer(rank, self._callbacks.on_report(message))
            case Progress(step=step):
                rank.trains = rank.trains or step > 0
                if rank.number == 0:
                    self._callbacks.on_progress(step)
            case Line(text=text):
                self._callbacks.on_line(text)
            case Position():
                rank.position = message
            case Done():
                rank.done = message
            case Failure():
                self._fail(rank, message)
            case Exit(code=code):
                self._fail(rank, _exit_failure(rank.number, code))
                self._close(rank)  # its children may still hold the line

    def _answer(self, rank: _Rank, answer: Decision | Inquiry) -> None:
        with contextlib.suppress(OSError):  # a dead rank is noticed by its exit
            rank.wire.send(answer)

    def _close(self, rank: _Rank) -> None:
        if rank.ended:
            return  # its line ended before its exit was heard: a callback raised in between
        self._selector.unregister(rank.wire.socket)
        rank.ended = True

    def _end_of_line(self, rank: _Rank) -> None:
        self._close(rank)
        if rank.pid:
            failure = Failure(kind="lost", rank=rank.number, message=f"rank {rank.number} vanished")
        else:
            failure = Failure(
                kind="launch", rank=rank.number, message=f"rank {rank.number} did not start"
            )
        self._fail(rank, failure)

    def _fail(self, rank: _Rank, failure: Failure) -> None:
        # The exit after a failure tells nothing new; trouble after the job is no trouble.
        if not (rank.failed or rank.done):
            rank.failed = True
            self._failures.append(failure)

    # Stalls

    def _silence(self, rank: _Rank) -> float:
        return 0.0 if rank.done else self._clock - rank.heard

    def _patience(self, rank: _Rank) -> float:
        return self._stall_timeout if rank.ready else max(self._stall_timeout, _START)

    def _stalled(self) -> Failure:
        """Which of the silent ranks is to blame, and what every silent rank is doing.

        Signs of life are about a second apart, so the one to blame need not be the first that is
        late: it is a rank that cannot even answer, or else the one furthest behind that does not
        wait in a collective.
        """
        silent = [rank for rank in self._ranks if self._silence(rank) > self._patience(rank) / 2]
        seconds = max(self._silence(rank) for rank in silent)
        for rank in silent:
            self._answer(rank, Inquiry())
        self._listen_until(lambda: all(rank.position for rank in silent), _ANSWER)
        if self._failures:
            return self._cause()

        def blame(rank: _Rank) -> tuple[bool, int, bool]:
            where = rank.position
            return (True, where.step, where.waits) if where else (False, 0, False)

        cause = min(silent, key=blame)
        where = cause.position
        place = f"after step {where.step}" if where else "and does not answer"
        stacks = [
            f"rank {rank.number} after step {rank.position.step}:\n{rank.position.stack}"
            for rank in sorted(silent, key=blame)
            if rank.position
        ]
        return Failure(
            kind="stalled",
            rank=cause.number,
            message=f"rank {cause.number} gave no sign of life for {seconds:.1f} s, {place}",
            traceback="\n".join(stacks),
        )

    # The end

    def _let_save(self) -> None:
        """Have a run that trains save its state, unless that takes too long or anything fails.

        Its steps are told, so that they are counted; nothing else is heard of it.
        """
        first = self._ranks[0]
        if not (self._saves and first.trains) or self._failures:
            return
        answer, told = Decision(stop=True, save=True), self._callbacks.on_progress

        def count(step: int) -> None:
            with contextlib.suppress(Exception):  # the end is under way
                told(step)

        self._callbacks = Callbacks(
            on_report=lambda _: answer, on_line=self._callbacks.on_line, on_progress=count
        )
        self._answer(first, answer)
        self._hear_all()
        self._listen_until(lambda: bool(first.done or self._failures), _SAVE)
        if first.done and first.done.steps_trained:
            count(first.done.step)

    def _end(self) -> None:
        """Hang up, terminate, kill: no rank and no process of a rank survives."""
        self._callbacks = Callbacks(on_report=lambda _: Decision(stop=True))
        try:
            if not all(rank.ended for rank in self._ranks):
                for rank in self._ranks:
                    rank.wire.hang_up()
                self._signal(signal.SIGTERM)
                self._listen_until(lambda: False, _TERMINATE)
        finally:
            self._signal(signal.SIGKILL)
            self._listen_until(lambda: False, _LEAVE)
            for rank in self._ranks:
                rank.wire.socket.close()
            self._selector.close()

    def _signal(self, number: signal.Signals) -> None:
        if self._signal_far:
            self._signal_far({rank.number: rank.pid for rank in self._ranks if rank.pid}, number)
        for rank in self._ranks:
            if self._local and rank.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(rank.pid, number)


def _exit_failure(rank: int, code: int) -> Failure:
    if code < 0:
        message = f"rank {rank} was killed by {_signal_name(-code)} (signal {-code})"
        return Failure(kind="signal", rank=rank, message=message)
    message = f"rank {rank} exited with code {code} before its job was done"
    return Failure(kind="exit", rank=rank, message=message)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a signal"


_ONLY_AN_ECHO = 2


def _echoes(failure: Failure) -> int:
    """How little the failure says of its cause: 0 names it, 1 where it is, 2 is only an echo.

    An exception of a lost connection says that another rank is gone; in a script it is a user's
    error.
    """
    if failure.kind in ("exception", "user_error") and _ECHO.search(failure.message):
        return _ONLY_AN_ECHO
    return 1 if failure.kind == "lost" else 0


def _runs(pid: int) -> bool:
    """Whether a process of this machine is there, and not stopped by a signal."""
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False
