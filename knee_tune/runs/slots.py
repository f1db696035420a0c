"""Several worker groups at a time: one thread per slot, and one interrupt that ends them all."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType

LOOK_SECONDS = 0.2
"""Seconds after which who waits for other slots looks whether a signal came: it may wake nobody."""


class SlotInterruptedError(Exception):
    """Another slot was interrupted or failed, so what this one was doing ends as well."""


class Slots:
    """``count`` slots that work side by side and stop together.

    ``on_interrupt`` is called as soon as Ctrl-C arrives, perhaps amid any other code of the main
    thread: it is to take no lock.
    """

    def __init__(self, count: int, *, on_interrupt: Callable[[], None] = lambda: None) -> None:
        self._count = count
        self._on_interrupt = on_interrupt
        self._stopped = False
        self._waits = False
        """Whether this thread waits for the others: an interrupt is for them, and raised after."""

    @property
    def stopped(self) -> bool:
        """Whether an interrupt came, or an exception ended a slot: the others begin nothing new."""
        return self._stopped

    def raise_if_stopped(self) -> None:
        """Raise SlotInterruptedError once stopped; called at every sign of life of a run."""
        if self.stopped:
            raise SlotInterruptedError("another slot was interrupted")

    def run(self, work: Callable[[int], None]) -> None:
        """Call ``work(slot)`` in every slot, the first one in this thread, where Ctrl-C arrives.

        Raises the interrupt, or else the first exception of any slot, once all of them have ended.
        """
        errors: list[BaseException] = []
        self._waits = False

        def guarded(slot: int) -> None:
            try:
                work(slot)
            except BaseException as error:
                errors.append(error)
                self._stopped = True

        with self._interrupted_at_once(errors), ThreadPoolExecutor(self._count) as pool:
            others = [pool.submit(guarded, slot) for slot in range(1, self._count)]
            guarded(0)
            self._waits = True
            while wait(others, timeout=LOOK_SECONDS).not_done:
                pass
        if errors:
            raise next((each for each in errors if isinstance(each, KeyboardInterrupt)), errors[0])

    @contextmanager
    def _interrupted_at_once(self, errors: list[BaseException]) -> Iterator[None]:
        """An interrupt stops all slots when it arrives, not when the first one has cleaned up.

        That one saves its run first, and may wait for a storage: the others do so meanwhile. Once
        it only waits for them the interrupt is put into ``errors``: raised amid the waiting, it
        could leave a lock behind that they need to end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {
            number: handler for number in numbers if callable(handler := signal.getsignal(number))
        }

        def interrupt(number: int, frame: FrameType | None) -> None:
            try:
                handlers[signal.Signals(number)](number, frame)
            except KeyboardInterrupt as error:
                self._stopped = True
                self._on_interrupt()
                if not self._waits:
                    raise
                errors.append(error)

        for number in handlers:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
