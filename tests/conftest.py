"""Fixtures for every test."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import s3
from benchmarks.postgresql import PostgresServer, private_server
from knee_tune.runs import trainer
from tests import waiting, warm

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Give commands that tests run the time that tests have, and every process one CPU thread.

    Threads that wait for each other on a busy machine spin: they double a test's processor time.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch or NumPy
    waiting.COMMAND = float(config.getoption("timeout") or config.getini("timeout")) - 10
    stack = ExitStack()
    stack.enter_context(warm.folder())
    config.add_cleanup(stack.close)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """After a failure: how to have the tests in this order again."""
    seed = config.getoption("randomly_seed", None)
    if exitstatus and seed is not None:
        terminalreporter.write_line(f"the same order again: --randomly-seed={seed}")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real sample data; the test is skipped where there is none."""
    folder = Path(os.environ.get("KNEE_TUNE_SHARED") or REPOSITORY.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no sample data in {folder} (set KNEE_TUNE_SHARED to the folder with data/)")
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server that tests may restart; skipped where none is installed."""
    try:
        with private_server() as server:
            yield server
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgresql(request: pytest.FixtureRequest) -> str:
    """A database in PostgreSQL: what ``KNEE_TUNE_TEST_POSTGRESQL`` names, or one of our own."""
    named = os.environ.get("KNEE_TUNE_TEST_POSTGRESQL")
    return named or request.getfixturevalue("postgres_server").url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.S3Server]:
    """An S3 server on this machine, with an empty bucket; skipped where moto or s3fs is missing."""
    try:
        with s3.private_server() as server:
            yield server
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_arrives() -> None:
    """Where tests run in the background a shell has Ctrl-C ignored, in every process they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _ranks_begin_warm() -> Iterator[None]:
    """What ranks are forked from need not import torch anew in every test that has some."""
    with warm.warm_ranks():
        yield


@pytest.fixture(autouse=True)
def _the_same_random_numbers() -> None:
    """Tests are in any order, and models that they make begin alike in all of them."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(1)


@pytest.fixture(autouse=True)
def _no_pause_after_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that the machine ended is started again at once."""
    monkeypatch.setattr(trainer, "FIRST_PAUSE", 0.0)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or writes into, the studies and servers of whoever runs it."""
    for name in (
        "KNEE_TUNE_HOME",
        "KNEE_TUNE_DATA",
        "KNEE_TUNE_TRUNK_CACHE",
        "KNEE_TUNE_STORAGE_TIMEOUT",
        "OPTUNA_STORAGE",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_REGISTRY_URI",
        "MLFLOW_RUN_ID",
    ):
        monkeypatch.delenv(name, raising=False)
