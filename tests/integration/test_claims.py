"""Drivers claim runs of a study: each is one driver's, until that driver lets go of it or dies."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from knee_tune.study.locks import take_claim
from tests.command_line import REPOSITORY, environment
from tests.waiting import awaited

HOLD = """\
import sys, time
from knee_tune.study.locks import take_claim
with take_claim(*sys.argv[1:]):
    print("taken", flush=True)
    time.sleep(60)
"""
"""Another driver, which trains for a minute."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage that drivers share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/optuna.db"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture
def name() -> str:
    """A run that nobody else ever trained."""
    return f"study-{uuid.uuid4().hex}-row-0-1"


def test_a_run_is_one_drivers_until_that_lets_go(url: str, name: str) -> None:
    for _ in range(2):
        mine = take_claim(url, name)
        assert mine is not None
        with mine:
            assert take_claim(url, name) is None
            other = take_claim(url, f"{name}0")
            assert other is not None
            with other:
                pass
            assert take_claim(url, name) is None


def test_a_driver_that_is_killed_claims_nothing(url: str, name: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLD, url, name],
        env=environment(),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    with driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "taken\n"
            assert take_claim(url, name) is None
        finally:
            driver.kill()
    with awaited(lambda: take_claim(url, name), seconds=10):  # a server notices a moment later
        pass


@pytest.mark.parametrize("url", ["sqlite://", "mysql://host/optuna"])
def test_where_drivers_cannot_meet_nothing_is_taken(url: str, name: str) -> None:
    for _ in range(2):
        assert take_claim(url, name) is not None
