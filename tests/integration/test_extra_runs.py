"""Runs outside the search, trained for real in this process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from knee_tune.commands.extra_runs import ExtraRun, train_extra_runs
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import open_for_training, resolve_asked
from knee_tune.commands.workers import GroupOptions
from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.plans.planner import knee_schedule
from knee_tune.records.values import StepCount
from knee_tune.study.attributes import extra_steps
from knee_tune.workers.protocol import Channel, Outcome
from tests.fake_runner import FakeRunner

SOON = 20.0
"""Seconds after which a test gives up; what it waits for takes a fraction of one."""


class Gate(FakeRunner):
    """Trains nothing before somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.training, self.awaited = threading.Event(), threading.Event()

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        if isinstance(plan, TrainPlan):
            self.training.set()
            assert self.awaited.wait(SOON), "nobody waited"
        return super().job(plan, channel)

    def line(self, text: str) -> None:
        """What people are told."""
        if "waiting for the same run elsewhere" in text:
            self.awaited.set()


def test_two_commands_that_want_the_same_run_count_its_steps_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two audits at a time do."""
    gate = Gate()
    monkeypatch.setattr("knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: gate)
    spec = resolve_asked(task="digits", preset="quick")
    recipe = spec.typed_recipe
    places = Places.of(Home(tmp_path), storage=None, tracking_uri="none")
    with (
        open_for_training(spec, places, GroupOptions(device="cpu")) as opened,
        ThreadPoolExecutor() as pool,
    ):
        schedule = knee_schedule(
            recipe, opened.workers.facts, seed_lr=recipe.seed_lr, explore_fraction=0.5
        )
        run = ExtraRun(key="audit-4-1", name="audit", schedule=schedule, seed=1, label="audit")
        first = pool.submit(train_extra_runs, opened, gate, [run])
        assert gate.training.wait(SOON)
        (second,) = train_extra_runs(opened, gate, [run])
        total = schedule.total_steps
        assert extra_steps(opened.study, run.key) == StepCount(trained=total, reached=total)
        (record,) = first.result()
        for each in (record, second):
            assert (each.record.steps.trained, each.record.steps.reused) == (total, 0)
