"""What is waited for, for how long, and what people read of it."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from knee_tune.errors import UserError
from knee_tune.runs.slots import Slots
from knee_tune.study.patience import Patience, StorageGoneError, storage_timeout
from tests.waiting import awaited, main_thread_is_in

URL = "postgresql+psycopg://ann:secret@host/db"

REFUSED = OperationalError("SELECT 1", {}, Exception("connection failed: Connection refused"))


def away(times: int, *, then: Callable[[], int] = lambda: 7) -> Callable[[], int]:
    """A call that finds no database ``times`` times."""
    left = iter(range(times))

    def call() -> int:
        for _ in left:
            raise REFUSED
        return then()

    return call


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Patience:
    monkeypatch.setattr("knee_tune.study.patience.LONGEST_PAUSE", 0.01)
    caplog.set_level(logging.WARNING)
    return Patience(URL)


def test_a_call_is_repeated_until_it_is_answered_and_that_is_said_twice(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    assert patience.outlast(away(9)) == 7
    begins, ends = caplog.messages
    shown = "`storage` postgresql+psycopg://ann:***@host/db: "
    assert begins == (
        f"{shown}cannot be used now (connection failed: Connection refused); "
        "waiting up to 30 s (KNEE_TUNE_STORAGE_TIMEOUT)"
    )
    assert ends == f"{shown}answers again after 0 s, going on"


def test_what_once_answered_is_waited_for_ten_minutes(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    patience.outlast(away(0))
    patience.outlast(away(9))
    assert "waiting up to 600 s" in caplog.messages[0]


def test_a_moment_is_not_worth_a_line(patience: Patience, caplog: pytest.LogCaptureFixture) -> None:
    assert patience.outlast(away(1)) == 7
    assert not caplog.messages


def test_threads_that_wait_side_by_side_say_it_once(
    patience: Patience, caplog: pytest.LogCaptureFixture
) -> None:
    both = threading.Barrier(2)

    def meet() -> int:
        return both.wait(10)

    threads = [
        threading.Thread(target=patience.outlast, args=(away(9, then=meet),)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [message.split(": ")[1][:14] for message in caplog.messages] == [
        "cannot be used",
        "answers again ",
    ]


def test_errors_of_the_call_itself_are_raised_at_once(patience: Patience) -> None:
    def fails() -> int:
        raise KeyError("no such study")

    for call in (fails, away(3, then=fails)):
        with pytest.raises(KeyError):
            patience.outlast(call)


def test_after_its_time_a_wait_ends_in_one_line_and_nobody_waits_again(
    patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEE_TUNE_STORAGE_TIMEOUT", "0.05")
    with pytest.raises(StorageGoneError) as gone:
        patience.outlast(away(10**9))
    (line,) = str(gone.value).splitlines()
    assert "for 0.05 s (connection failed: Connection refused)" in line
    assert "the same command goes on" in line
    monkeypatch.setenv("KNEE_TUNE_STORAGE_TIMEOUT", "600")
    with pytest.raises(StorageGoneError):  # what cleans up
        patience.outlast(away(10**9))
    assert patience.outlast(away(0)) == 7


def test_ctrl_c_ends_every_wait(patience: Patience) -> None:
    waits, ended = threading.Event(), []

    def wait_too() -> None:
        def call() -> int:
            waits.set()
            raise REFUSED

        try:
            patience.outlast(call)
        except StorageGoneError as error:
            ended.append(error)

    def interrupted() -> int:
        waits.wait(10)
        raise KeyboardInterrupt

    thread = threading.Thread(target=wait_too)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        patience.outlast(away(3, then=interrupted))
    with pytest.raises(KeyboardInterrupt):  # what cleans up
        patience.outlast(away(10**9))
    thread.join(10)
    assert len(ended) == 1


def test_ctrl_c_ends_the_wait_of_a_slot_while_the_main_thread_has_nothing_left_to_do(
    patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KNEE_TUNE_STORAGE_TIMEOUT", "60")
    patience.outlast(away(0))
    slots = Slots(2, on_interrupt=patience.interrupt)
    ended = list[float]()

    def interrupt() -> int:
        awaited(lambda: main_thread_is_in("_base.py", "wait"))
        os.kill(os.getpid(), signal.SIGINT)
        awaited(lambda: slots.stopped)
        ended.append(time.monotonic())
        raise REFUSED

    def work(slot: int) -> None:
        if slot == 1:
            patience.outlast(away(3, then=interrupt))

    with pytest.raises(KeyboardInterrupt):
        slots.run(work)
    assert time.monotonic() - ended[0] < 30


def test_after_ctrl_c_nobody_waits_whatever_answers_meanwhile(patience: Patience) -> None:
    patience.interrupt()
    assert patience.outlast(away(0)) == 7
    with pytest.raises(KeyboardInterrupt):
        patience.outlast(away(10**9))
    patience.resume()  # the next command
    assert patience.outlast(away(9)) == 7


def test_it_knows_of_an_outage_for_a_while(patience: Patience) -> None:
    assert not patience.away_within(60)
    patience.outlast(away(1))
    assert patience.away_within(60)
    began = time.monotonic()
    while time.monotonic() == began:
        pass
    assert not patience.away_within(0)


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNEE_TUNE_STORAGE_TIMEOUT", said)
    with pytest.raises(UserError, match="KNEE_TUNE_STORAGE_TIMEOUT"):
        storage_timeout()
