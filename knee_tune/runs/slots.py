"""Several worker groups at a time: one thread per slot, and one interrupt that ends them all."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait


class SlotInterruptedError(Exception):
    """Another slot was interrupted or failed, so what this one was doing ends as well."""


class Slots:
    """``count`` slots that work side by side and stop together."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._stop = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether a slot has ended by an exception: the others begin nothing new."""
        return self._stop.is_set()

    def raise_if_stopped(self) -> None:
        """Called at every sign of life of a run: this is how an interrupt reaches all slots."""
        if self.stopped:
            raise SlotInterruptedError("another slot was interrupted")

    def run(self, work: Callable[[int], None]) -> None:
        """``work(slot)`` in every slot, the first one in this thread, where Ctrl-C arrives.

        Raises the first exception of any slot once all of them have ended.
        """
        errors: list[BaseException] = []

        def guarded(slot: int) -> None:
            try:
                work(slot)
            except BaseException as error:
                errors.append(error)
                self._stop.set()

        with ThreadPoolExecutor(max_workers=self._count) as pool:
            others = [pool.submit(guarded, slot) for slot in range(1, self._count)]
            guarded(0)
            try:
                wait(others)
            except KeyboardInterrupt as error:
                errors.append(error)
                self._stop.set()
                wait(others)
        if errors:
            raise errors[0]
