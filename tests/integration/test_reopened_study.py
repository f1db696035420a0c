"""A later command opens a study's task as it was trained, or says that it cannot."""

from collections.abc import Callable
from pathlib import Path

import pytest

from knee_tune.commands.home import Home
from knee_tune.commands.opened import reopen_workers, resolve_asked
from knee_tune.commands.workers import GroupOptions
from knee_tune.errors import UserError
from knee_tune.plans.plan import TaskFacts
from knee_tune.study.storage import open_storage
from knee_tune.study.study import Study, open_study
from knee_tune.workers.protocol import Done
from tests.fake_runner import FakeRunner

Machine = Callable[[int, str], None]
"""Makes the machine one with so many GPUs and with data of that fingerprint."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    def become(gpus: int, fingerprint: str) -> None:
        facts = TaskFacts(
            steps_per_epoch=4,
            data_fingerprint=fingerprint,
            parameters=1,
            examples={},
            gpus=gpus,
        )
        described = Done(state="complete", result=facts.model_dump())
        runner = FakeRunner(job=lambda plan, channel: described)
        monkeypatch.setattr("knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: runner)

    return become


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def study(home: Home) -> Study:
    spec = resolve_asked(task="digits", name="s")
    storage = open_storage(f"sqlite:///{home.root}/optuna.db")
    return open_study(storage, spec, data_fingerprint="as it was")


@pytest.mark.parametrize(
    ("gpus", "asked", "bf16"), [(1, True, True), (1, None, False), (0, True, False)]
)
def test_what_was_trained_in_bf16_is_looked_at_in_bf16_where_there_is_a_gpu(
    home: Home, study: Study, machine: Machine, gpus: int, asked: bool | None, bf16: bool
) -> None:
    machine(gpus, "as it was")
    with reopen_workers(home, study, GroupOptions(), amp=asked) as opened:
        assert opened.placement().amp is bf16


def test_other_data_give_other_numbers(home: Home, study: Study, machine: Machine) -> None:
    machine(0, "prepared anew")
    with (
        pytest.raises(UserError, match=r"^study s: its data has changed since"),
        reopen_workers(home, study, GroupOptions()),
    ):
        pass
