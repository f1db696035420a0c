"""Slots work side by side and stop together."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from concurrent.futures._base import DoneAndNotDoneFutures

import pytest

from knee_tune.runs.slots import SlotInterruptedError, Slots
from tests.waiting import awaited


def test_every_slot_works_and_the_first_one_here() -> None:
    seen: dict[int, int] = {}
    Slots(3).run(lambda slot: seen.__setitem__(slot, threading.get_ident()))
    assert sorted(seen) == [0, 1, 2]
    assert seen[0] == threading.get_ident()


@pytest.mark.parametrize("broken", [0, 1])
def test_one_that_is_interrupted_stops_the_others(broken: int) -> None:
    slots = Slots(2)
    stopped = []

    def work(slot: int) -> None:
        if slot == broken:
            raise KeyboardInterrupt
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                slots.raise_if_stopped()
            except SlotInterruptedError:
                stopped.append(slot)
                raise
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        slots.run(work)
    assert stopped == [1 - broken]
    assert slots.stopped


def test_an_interrupt_reaches_the_others_while_the_first_one_still_cleans_up() -> None:
    heard = threading.Event()
    slots = Slots(2, on_interrupt=heard.set)
    stopped = threading.Event()

    def work(slot: int) -> None:
        try:
            if slot == 0:
                os.kill(os.getpid(), signal.SIGINT)
            awaited(lambda: slots.raise_if_stopped())
        except SlotInterruptedError:
            stopped.set()
        except KeyboardInterrupt:  # it saves its run
            assert heard.is_set()
            assert stopped.wait(10)
            raise

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        slots.run(work)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_is_not_raised_amid_waiting_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It could leave a lock of theirs behind. Nor does a signal always wake who waits."""

    def interrupted(others: Sequence[Future[None]], timeout: float) -> DoneAndNotDoneFutures[None]:
        if not slots.stopped:
            signal.raise_signal(signal.SIGINT)
        return wait(others, timeout)

    monkeypatch.setattr("knee_tune.runs.slots.wait", interrupted)
    slots = Slots(2)

    def work(slot: int) -> None:
        awaited(lambda: slot == 0 or slots.stopped)

    with pytest.raises(KeyboardInterrupt):
        slots.run(work)


def test_a_signal_that_interrupts_nothing_stops_nothing() -> None:
    def ignored(*_: object) -> None:
        """Of a program that this one is a part of."""

    slots = Slots(1)
    before = signal.signal(signal.SIGTERM, ignored)
    try:
        slots.run(lambda slot: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not slots.stopped


def test_an_interrupt_comes_before_what_it_made_the_others_raise() -> None:
    slots = Slots(2)

    def work(slot: int) -> None:
        if slot == 1:
            raise RuntimeError("the storage is gone")
        awaited(lambda: slots.stopped)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slots.run(work)
