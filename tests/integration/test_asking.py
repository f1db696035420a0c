"""Drivers take turns in asking a study for its next trial."""

import os
import signal
import threading
from pathlib import Path

import pytest

from knee_tune.commands.opened import interruptible
from knee_tune.runs.slots import Slots
from knee_tune.study.locks import asking_lock
from knee_tune.study.patience import patience_with


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that drivers share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/optuna.db"
    return str(request.getfixturevalue("postgresql"))


def test_one_driver_at_a_time_asks_again_and_again(url: str) -> None:
    mine, other = (asking_lock(url, study="a") for _ in range(2))
    for _ in range(2):
        asks = threading.Event()

        def ask(asks: threading.Event = asks) -> None:
            with other:
                asks.set()

        with mine:
            thread = threading.Thread(target=ask)
            thread.start()
            assert not asks.wait(0.3)
        assert asks.wait(10)
        thread.join()


def test_a_driver_that_fails_while_it_asks_gives_way(url: str) -> None:
    with pytest.raises(RuntimeError), asking_lock(url, study="a"):
        raise RuntimeError
    with asking_lock(url, study="a"):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_wait_in_every_slot(url: str, number: signal.Signals) -> None:
    got, patience = list[int](), patience_with(url)
    slots = Slots(2, on_interrupt=patience.interrupt)
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), number))

    def work(slot: int) -> None:
        with asking_lock(url, study="a"):
            got.append(slot)

    with interruptible(), asking_lock(url, study="a"):  # as a driver that is stopped
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            slots.run(work)
    assert not got
    patience.resume()
    with asking_lock(url, study="a"):
        pass
