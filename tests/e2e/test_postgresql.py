"""Several drivers on one study in PostgreSQL.

``KNEE_TUNE_TEST_POSTGRESQL`` may name a database, as in
``postgresql+psycopg://user@127.0.0.1:5432/optuna``; a study of its own name is left in there.
"""

import json
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url

from benchmarks.postgresql import binaries
from benchmarks.restarts import drill
from tests.command_line import TINY, complains, knee_tune, knee_tune_here, running

TRIALS = 6


@pytest.fixture
def command(postgresql: str, tmp_path: Path) -> tuple[str, ...]:
    """The same command for every driver."""
    return (
        *TINY,
        *("--set", "recipe.epochs=8", "--pruner", "none", "--trials", str(TRIALS)),
        *("--study-name", f"test-{uuid.uuid4().hex[:8]}", "--storage", postgresql),
        *("--tracking-uri", "none", "--home", str(tmp_path / "home")),
    )


def trials(command: tuple[str, ...]) -> list[FrozenTrial]:
    name = command[command.index("--study-name") + 1]
    storage = command[command.index("--storage") + 1]
    return optuna.load_study(study_name=name, storage=storage).trials


def test_two_drivers_that_start_together_share_one_study(command: tuple[str, ...]) -> None:
    with ThreadPoolExecutor() as pool:
        drivers = [pool.submit(knee_tune, *command) for _ in range(2)]
        outputs = [driver.result().stdout for driver in drivers]
    done = trials(command)
    assert Counter(trial.state for trial in done) == {TrialState.COMPLETE: TRIALS}
    assert len({tuple(trial.params.values()) for trial in done}) == TRIALS
    assert done[0].params == {"seed_lr": 0.05, "explore_fraction": 0.5}
    assert len({trial.user_attrs["driver"]["pid"] for trial in done}) == 2
    assert all(output.count("complete, valid_accuracy") for output in outputs)


def test_a_second_driver_continues_what_the_first_left(command: tuple[str, ...]) -> None:
    with running(*command, until="trial 1: step") as (process, family):
        process.kill()
        assert not psutil.wait_procs(family, timeout=20)[1]
    assert "trial 1: its driver was killed" in knee_tune(*command).stdout
    states = [trial.state for trial in trials(command)]
    assert Counter(states) == {TrialState.COMPLETE: TRIALS, TrialState.FAIL: 1}
    name, storage = (command[command.index(option) + 1] for option in ("--study-name", "--storage"))
    printed = json.loads(knee_tune("status", name, "--storage", storage, "--json").stdout)
    assert printed["counts"] == {"complete": TRIALS, "pruned": 0, "failed": 0, "running": 0}


@pytest.mark.usefixtures("postgresql")
def test_a_server_that_never_answered_is_named() -> None:
    nowhere = "postgresql+psycopg://knee:secret@127.0.0.1:1/optuna"
    done = knee_tune_here("status", "--storage", nowhere, expect=2, KNEE_TUNE_STORAGE_TIMEOUT="0")
    (line,) = done.stderr.splitlines()
    assert line.startswith("knee-tune: --storage postgresql+psycopg://knee:***@127.0.0.1:1/optuna")
    assert "server up" in line


def test_what_waiting_does_not_mend_is_said_at_once(postgresql: str) -> None:
    unknown = make_url(postgresql).set(database="nosuch").render_as_string(hide_password=False)
    complains("status", "--storage", unknown, said=("--storage", 'database "nosuch" does not'))


@pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed")
def test_drivers_outlast_a_restart_and_commits_whose_answer_is_lost() -> None:
    found = drill(trials=4, drivers=2, restarts=1, away=0.5, lose=30)
    assert found.exit_codes == (0, 0), found
    assert (found.restarts, found.states) == (1, {"COMPLETE": 4}), found
    assert found.lost_answers > 0
    assert found.told == found.points == 4
    assert found.steps == 4 * 150
