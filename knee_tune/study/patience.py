"""Waits for a database that is away: restarted, cut off, locked by another process."""

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from knee_tune.databases import cause_of, is_outage
from knee_tune.errors import MachineError, UserError
from knee_tune.runs.locks import POLL_SECONDS
from knee_tune.urls import shown_url

log = logging.getLogger(__name__)

T = TypeVar("T")

TIMEOUT_VARIABLE = "KNEE_TUNE_STORAGE_TIMEOUT"
"""Environment variable: seconds to wait for a storage that is away."""

TIMEOUT = 600.0

OPENING_TIMEOUT = 30.0
"""Seconds at most to wait for what never answered: its address may be wrong."""

LONGEST_PAUSE = 5.0
"""Seconds between two attempts."""

MOMENT = 1.0
"""Seconds in which what was away is taken to be away still, by who need not know."""


class StorageGoneError(MachineError):
    """The storage stayed away for longer than it is waited for."""


def storage_timeout() -> float:
    """Seconds that a storage is waited for; UserError if the environment says no number."""
    said = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(said or TIMEOUT)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"{TIMEOUT_VARIABLE}={said}: not a number of seconds; as in 600")
    return seconds


@functools.cache
def patience_with(url: str) -> "Patience":
    """Patience that all calls of this process to the database at ``url`` share."""
    return Patience(url)


class Patience:
    """Repetition of calls to a database that is away; threads wait together, and say it once."""

    def __init__(self, url: str) -> None:
        self._shown = shown_url(url, password="***")
        self._lock = threading.Lock()
        self._waiting = 0
        self._since = 0.0
        self._given_up = self._interrupted = False
        self._away_at = -math.inf
        self._away = False
        """Whether the newest call found it away."""
        self.reached = False
        """Whether it ever answered."""

    def interrupt(self) -> None:
        """End all waiting, in any thread, on Ctrl-C. Takes no lock, for signal handlers."""
        self._interrupted = True

    def raise_if_interrupted(self) -> None:
        """End a wait for something else after Ctrl-C, as :meth:`outlast` ends its own."""
        if self._interrupted:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            raise StorageGoneError("interrupted")

    def resume(self) -> None:
        """Begin a new command: what ended an earlier one of this process is over."""
        self._given_up = self._interrupted = False

    def away_within(self, seconds: float) -> bool:
        """Tell whether it was seen to be away in the last ``seconds``."""
        return time.monotonic() - self._away_at < seconds

    @property
    def away_now(self) -> bool:
        """Tell whether the newest call found it away, a moment ago."""
        return self._away and self.away_within(MOMENT)

    def attempt(self, call: Callable[[], T]) -> T:
        """Call once."""
        try:
            value = call()
        except Exception as error:
            if is_outage(error):
                self._away, self._away_at = True, time.monotonic()
            raise
        self._away = False
        self.reached = True
        self._given_up = False
        return value

    def outlast(self, call: Callable[[], T]) -> T:
        """Call again and again while the database is away; ``call`` must be safe to repeat.

        StorageGoneError where that lasts too long, and at once as long as the calls of a command
        that gave up go on failing: whoever cleans up waits no second time. The same after Ctrl-C,
        in the main thread by KeyboardInterrupt.
        """
        try:
            return self.attempt(call)
        except Exception as error:
            if not is_outage(error):
                raise
        return self._wait_for(call)

    def _wait_for(self, call: Callable[[], T]) -> T:
        # Only what has to wait needs it: it takes its time to import.
        import tenacity

        seconds = storage_timeout()
        if not self.reached:
            seconds = min(seconds, OPENING_TIMEOUT)
        said = False

        def say(state: tenacity.RetryCallState) -> None:
            nonlocal said
            if not said and state.outcome is not None and (error := state.outcome.exception()):
                said = True
                self._begin(error, seconds)

        timed_out = tenacity.stop_after_delay(seconds)
        answered = True
        try:
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception(is_outage),
                wait=tenacity.wait_random_exponential(multiplier=0.4, max=LONGEST_PAUSE),
                stop=lambda state: self._over or timed_out(state),
                sleep=self._pause,
                before_sleep=say,
                reraise=True,
            )
            value: T = retrying(self.attempt, call)
            return value
        except KeyboardInterrupt:
            answered = False
            self.interrupt()
            raise
        except Exception as error:
            if not is_outage(error):
                raise
            answered = False
            self._given_up = True
            if self._interrupted and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt from error
            raise StorageGoneError(
                f"`storage` {self._shown}: it could not be used for {seconds:g} s "
                f"({cause_of(error)}); all that was done is kept, and the same command goes on"
            ) from error
        finally:
            if said:
                self._end(answered=answered)

    @property
    def _over(self) -> bool:
        return self._given_up or self._interrupted

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._over and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))

    def _begin(self, error: BaseException, seconds: float) -> None:
        with self._lock:
            self._waiting += 1
            if self._waiting > 1:
                return
            self._since = time.monotonic()
        log.warning(
            "`storage` %s: cannot be used now (%s); waiting up to %g s (%s)",
            *(self._shown, cause_of(error), seconds, TIMEOUT_VARIABLE),
        )

    def _end(self, *, answered: bool) -> None:
        with self._lock:
            self._waiting -= 1
            if self._waiting or not answered:
                return
            seconds = time.monotonic() - self._since
        log.warning("`storage` %s: answers again after %.0f s, going on", self._shown, seconds)
