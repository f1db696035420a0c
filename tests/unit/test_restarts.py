"""Groups that died: when another one is started, and whose fault it was in the end."""

from pathlib import Path
from typing import get_args

import pytest

from knee_tune.commands.workers import _facts
from knee_tune.errors import MachineError, UserError
from knee_tune.plans.plan import DescribePlan, TaskFacts
from knee_tune.runs.trainer import JOB_STARTS, error_of, run_job
from knee_tune.tasks.registry import TASKS, TaskEntry
from knee_tune.workers.protocol import QUIET, Callbacks, Done, Failure, Outcome
from tests.fake_runner import FakeRunner

OURS = "digits"
THEIRS = "a task of somebody's own"

KINDS = get_args(Failure.model_fields["kind"].annotation)
OF_THE_MACHINE = ("signal", "lost", "launch", "disk")


@pytest.fixture(autouse=True)
def _their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = TaskEntry(recipe="my_task:Recipe", task="my_task:Task")
    monkeypatch.setitem(TASKS, THEIRS, entry)


def died(kind: str) -> Failure:
    return Failure.model_validate({"kind": kind, "rank": 0, "message": f"it died: {kind}"})


def ends(*outcomes: Outcome) -> FakeRunner:
    """A group runner whose groups end like this, one after another."""
    left = iter(outcomes)
    return FakeRunner(job=lambda plan, channel: next(left))


def describe(runner: FakeRunner, *, task: str = OURS, lines: list[str] | None = None) -> Done:
    """The first job of every command."""
    plan = DescribePlan(task=task, recipe={}, seed=0, data_dir=Path("data"), log_dir=Path("logs"))
    return run_job(runner, plan, QUIET if lines is None else Callbacks(on_line=lines.append))


@pytest.mark.parametrize("kind", OF_THE_MACHINE)
def test_a_job_that_the_machine_ends_is_started_three_times(kind: str) -> None:
    done, lines = Done(state="complete"), list[str]()
    assert describe(ends(died(kind), died(kind), done), lines=lines) == done
    assert [line.partition(";")[0] for line in lines] == [f"it died: {kind}"] * 2
    with pytest.raises(MachineError, match=f"it died: {kind}"):
        describe(ends(*[died(kind)] * JOB_STARTS))


@pytest.mark.parametrize("kind", sorted({*KINDS} - {*OF_THE_MACHINE}))
def test_a_job_with_an_error_of_its_own_is_not_started_again(kind: str) -> None:
    runner = ends(died(kind), Done(state="complete"))
    with pytest.raises((UserError, MachineError), match=f"it died: {kind}"):
        describe(runner)
    assert len(runner.jobs) == 1


def test_what_a_group_died_of_is_where_its_error_sends_people(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    plan = DescribePlan(task=OURS, recipe={}, seed=0, data_dir=tmp_path, log_dir=logs)
    stalled = died("stalled").model_copy(update={"traceback": "rank 0 after step 3:\n..."})
    with pytest.raises(MachineError, match=f"its log: {logs}"):
        run_job(ends(stalled), plan)
    assert "rank 0 after step 3" in (logs / "failure.log").read_text()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", [OURS, THEIRS])
def test_only_input_and_code_of_ones_own_are_to_blame_for_exit_code_2(kind: str, task: str) -> None:
    theirs = kind == "user_error" or (task == THEIRS and kind in ("exception", "exit"))
    error = error_of(died(kind), task=task, said="it failed")
    assert type(error) is (UserError if theirs else MachineError)
    assert error.exit_code == (2 if theirs else 1)
    assert str(error).startswith("it failed")


def test_what_happens_while_a_command_warms_up_is_told(caplog: pytest.LogCaptureFixture) -> None:
    facts = TaskFacts(
        data_fingerprint="f", steps_per_epoch=1, parameters=1, gpus=0, examples={}, modules=()
    )
    runner = ends(died("signal"), Done(state="complete", result=facts.model_dump(mode="json")))
    plan = DescribePlan(task=OURS, recipe={}, seed=0, data_dir=Path("data"), log_dir=Path("logs"))
    found, _ = _facts(runner, plan, TASKS[OURS], script=None)
    assert found.parameters == 1
    assert "it died: signal; starting again in " in caplog.text
