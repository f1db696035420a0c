"""What people see while a study runs."""

import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from knee_tune.cli.summary import print_start
from knee_tune.cli.watch import LiveWatcher, PlainWatcher
from knee_tune.commands.run import StudyStart
from knee_tune.plans.plan import Replica, TrainPlan
from knee_tune.schedules import Knee
from knee_tune.workers.protocol import Report

START = StudyStart(
    name="mine",
    metric="valid_accuracy",
    watched="valid_accuracy",
    trials=4,
    finished=0,
    total_steps=100,
    parameters=8970,
    device="cpu",
    world_size=1,
    slots=1,
    gpus=0,
    replicates=2,
    remarks=("pruning is off",),
)

PLAN = TrainPlan(
    task="digits",
    recipe={},
    seed=1,
    data_dir=Path(),
    log_dir=Path(),
    schedule=Knee(seed_lr=0.05, total_steps=100, explore_steps=50),
    steps_per_evaluation=50,
    checkpoint_dir=Path(),
)


def report(step: int) -> Report:
    return Report(step=step, total_steps=100, metrics={"valid_accuracy": 61.5}, seconds=0)


def console() -> Console:
    return Console(file=StringIO(), width=200)


def printed(to: Console) -> str:
    assert isinstance(to.file, StringIO)
    return to.file.getvalue()


def test_a_log_says_what_each_trial_trains_and_what_it_need_not() -> None:
    log = console()
    print_start(log, START)
    watcher = PlainWatcher(log, START)
    watcher.trial_started(3, PLAN, explore_fraction=0.5, replicates=2)
    watcher.trial_reused(3, 40, replicate=0, origin="trunk")
    watcher.trial_reported(3, report(50), replicate=0)
    watcher.trial_reused(3, 100, replicate=1, origin="record")
    watcher.trial_finished(3, "complete", value=61.5, reason="")
    assert printed(log).splitlines() == [
        "8,970 parameters, 100 steps x 2 replicates per trial, 1 rank on cpu; 0 of 4 trials done",
        "pruning is off",
        "trial 3: seed LR 0.05, explore 50%, 100 steps x 2 replicates",
        "trial 3, replicate 1: from step 40 of its trunk",
        "trial 3, replicate 1: step 50/100, valid_accuracy 61.5",
        "trial 3, replicate 2: answered from its record",
        "trial 3: complete, valid_accuracy 61.5",
    ]


def test_where_a_total_ends_the_search_the_bar_shows_its_steps() -> None:
    start = replace(START, trials=None, finished=1, allowance=400, replicates=1)
    log = console()
    print_start(log, start)
    assert "; 1 trials done" in printed(log)
    watcher = LiveWatcher(console(), start)
    watcher.trial_started(1, PLAN, explore_fraction=0.5, replicates=1)
    watcher.trial_progressed(1, 100)
    watcher.trial_finished(1, "complete", value=61.5, reason="")
    assert "mine  2 trials" in shown(watcher)
    assert "25 %" in shown(watcher)


def shown(watcher: LiveWatcher) -> str:
    screen = console()
    screen.print(watcher.render())
    return printed(screen)


def test_the_time_that_is_left_follows_from_what_was_trained_not_from_what_was_reused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watcher = LiveWatcher(console(), START)
    watcher.trial_started(0, PLAN, explore_fraction=0.5, replicates=2)
    watcher.trial_progressed(0, 200)
    now += 20  # 0.1 s a step
    watcher.trial_finished(0, "complete", value=61.5, reason="")
    watcher.trial_started(1, PLAN, explore_fraction=0.5, replicates=2)
    watcher.trial_reused(1, 40, replicate=0, origin="trunk")
    watcher.trial_progressed(1, 100)
    now += 6
    left = 100 + 2 * 200  # of this trial, and of two that will cost what the first did
    assert f"10 steps/s, about 0:{left * 0.1:.0f} left" in shown(watcher)


def test_steps_run_on_over_the_replicates() -> None:
    watcher = LiveWatcher(console(), START)
    watcher.trial_started(0, PLAN, explore_fraction=0.5, replicates=2)
    watcher.trial_reported(0, report(50), replicate=1)
    assert "150/200" in shown(watcher)


def test_a_batch_has_lines_of_its_own_and_trials_only_if_they_diverge() -> None:
    log = console()
    watcher = PlainWatcher(log, replace(START, fused=True))
    replicas = tuple(Replica(seed=seed, schedule=PLAN.schedule) for seed in range(4))
    plan = PLAN.model_copy(update={"replicas": replicas})
    watcher.batch_started({3: (0.05, 0.5), 4: (0.05, 0.6)}, plan)
    watcher.batch_progressed(40)
    watcher.batch_reported(report(50))
    watcher.trial_finished(3, "complete", value=61.5, reason="")
    watcher.trial_finished(4, "pruned", value=None, reason="diverged: non-finite loss")
    assert printed(log).splitlines() == [
        "2 trials, 4 replicas, 100 steps: training",
        "step 50/100, mean valid_accuracy 61.5",
        "trial 4: pruned: diverged: non-finite loss",
    ]


def test_the_trials_of_a_batch_are_rows_that_go_on_together() -> None:
    watcher = LiveWatcher(console(), START)
    watcher.batch_started({0: (0.05, 0.5), 1: (0.1, 0.5)}, PLAN)
    watcher.batch_progressed(40)
    assert shown(watcher).count("40/100") == 2
