"""Slots work side by side and stop together."""

import threading
import time

import pytest

from knee_tune.runs.slots import SlotInterruptedError, Slots


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
