"""A study as knee-tune keeps it: made once, continued, recovered, read."""

import socket
import threading
from typing import Any

import optuna
import psutil
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from knee_tune.commands.opened import resolve_asked
from knee_tune.errors import UserError
from knee_tune.records.events import TrialFinished
from knee_tune.records.study import BaselineRecord
from knee_tune.records.values import Evaluation, RunEnd, RunRecord, StepCount
from knee_tune.runs.locks import process_id
from knee_tune.study.attributes import fused_attr, replicate_attr, run_of
from knee_tune.study.recovery import LEFT, current, give_back, key_of, put_back, recover, requeue
from knee_tune.study.study import (
    load_study,
    open_study,
    record_baseline,
    reported_sign,
    spec_of,
    study_record,
)
from tests.recording import Recording

POINT = {"seed_lr": 0.05, "explore_fraction": 0.5}
DEAD = {**process_id(), "ticks": 0}
"""A driver whose pid now belongs to a process that started at another time."""
ELSEWHERE = {**DEAD, "boot": "another"}
OF_AN_OLD_VERSION = {"host": socket.gethostname(), "pid": 1, "started": 0.0}
"""Perhaps in a container of that name."""


def opened(storage: InMemoryStorage | None = None, **request: Any) -> optuna.Study:
    spec = resolve_asked(task="digits", preset="quick", **request)
    return open_study(storage or InMemoryStorage(), spec, data_fingerprint="data")


def ask(study: optuna.Study, **attributes: Any) -> optuna.Trial:
    trial = study.ask()
    for name, (low, high) in {"seed_lr": (0.005, 0.128), "explore_fraction": (0, 0.8)}.items():
        trial.suggest_float(name, low, high, log=name == "seed_lr")
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    return trial


def plan(total_steps: int) -> dict[str, Any]:
    return {"schedule": {"total_steps": total_steps}, "seed": 1}


def test_the_first_trial_of_a_study_is_the_papers_default() -> None:
    assert ask(opened()).params == POINT


def test_a_study_says_how_its_metrics_are_measured() -> None:
    spec = resolve_asked(task="gpt", preset="demo")
    study = open_study(InMemoryStorage(), spec, data_fingerprint="data")
    assert "windows of 64" in study_record(study).measures["loss"]
    assert study_record(opened()).measures == {}  # an accuracy is an accuracy


def test_a_study_is_made_once_and_continued() -> None:
    storage = InMemoryStorage()
    made = opened(storage)
    again = opened(storage, trials=30, sampler="tpe")
    assert again.user_attrs["key"] == made.user_attrs["key"]
    assert len(again.trials) == 1  # the default is not queued a second time
    assert spec_of(again).trials == 30


def test_drivers_that_start_together_make_one_study() -> None:
    storage, keys = InMemoryStorage(), list[str]()
    threads = [
        threading.Thread(target=lambda: keys.append(opened(storage).user_attrs["key"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert len(study_record(load_study(storage, "knee-digits-quick")).trials) == 0
    assert len(load_study(storage, "knee-digits-quick").trials) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"seed": 2}, "it was made with seed=1, not 2"),
        ({"replicates": 3}, "it was made with replicates=1, not 3"),
        ({"settings": ("recipe.epochs=7",)}, "it was made with recipe.epochs=6, not 7"),
        (
            {"settings": ("recipe.model.hidden=[8]",)},
            "it was made with recipe.model.hidden=[64, 64], not [8]",
        ),
    ],
)
def test_trials_that_could_not_be_compared_are_refused(change: dict[str, Any], line: str) -> None:
    storage = InMemoryStorage()
    name = opened(storage).study_name
    with pytest.raises(UserError) as refusal:
        opened(storage, name=name, **change)
    assert str(refusal.value) == f"study {name}: {line}; choose another `study_name`"


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (True, "were trained in bf16, these would be in float32; leave `amp=False` out"),
        (False, "were trained in float32, these would be in bf16; add `amp=False`"),
    ],
)
def test_trials_in_other_arithmetic_are_refused(before: bool, line: str) -> None:
    storage = InMemoryStorage()
    spec = resolve_asked(task="digits", name="s")
    for amp in (before, before):
        open_study(storage, spec, data_fingerprint="data", amp=amp)
    with pytest.raises(UserError, match=line):
        open_study(storage, spec, data_fingerprint="data", amp=not before)


def test_what_is_trained_beside_the_search_does_not_change_what_was_asked_for() -> None:
    storage = InMemoryStorage()
    made = opened(storage, name="s", sampler="tpe", trials=30)
    spec = resolve_asked(task="digits", preset="quick", name="s")
    beside = open_study(storage, spec, data_fingerprint="data", beside=True)
    assert spec_of(beside) == spec_of(made)
    assert spec_of(made).sampler == "tpe"


def test_a_study_stays_in_the_experiment_that_its_runs_are_in() -> None:
    storage = InMemoryStorage()
    spec = resolve_asked(task="iwslt", name="s", settings=("recipe.data=mine",))
    assert spec.subject == "mine"
    before = spec.model_copy(update={"own_data": None})  # as before data named experiments
    for asked in (before, spec):
        study = open_study(storage, asked, data_fingerprint="data")
        assert spec_of(study).subject == "iwslt"


def test_a_corpus_of_ones_own_names_study_and_model_but_the_demo_does_not() -> None:
    spec = resolve_asked(task="translation", settings=("recipe.data=news",))
    assert (spec.name, spec.subject) == ("knee-news-30ep", "news")
    spec = resolve_asked(task="translation", preset="demo")
    assert (spec.name, spec.subject) == ("knee-translation-demo", "translation")


def test_another_task_under_the_same_name_is_refused() -> None:
    storage = InMemoryStorage()
    opened(storage, name="mine")
    spec = resolve_asked(task="iwslt", preset="demo", name="mine")
    with pytest.raises(UserError, match='made with task="digits", not "iwslt"; choose another'):
        open_study(storage, spec, data_fingerprint="data")


def test_an_unknown_study_names_the_known_ones() -> None:
    storage = InMemoryStorage()
    opened(storage, name="mine")
    with pytest.raises(UserError, match=r"^study yours: not in this storage; there are: mine$"):
        load_study(storage, "yours")


def test_a_study_of_somebody_else_is_not_touched() -> None:
    study = optuna.create_study(study_name="theirs")
    with pytest.raises(UserError, match=r"^study theirs: it was not made by knee-tune$"):
        study_record(study)


def test_a_requeued_trial_keeps_parameters_curve_and_run() -> None:
    study = opened()
    trial = ask(study, driver=DEAD, mlflow_run_id="abc", steps_trained=70, reason="it broke")
    trial.report(50.0, step=50)
    study.tell(trial, state=TrialState.FAIL)
    requeue(study, study.trials[0])
    waiting = study.trials[1]
    assert waiting.state == TrialState.WAITING
    assert waiting.params == POINT
    assert waiting.intermediate_values == {50: 50.0}
    assert waiting.user_attrs == {
        "mlflow_run_id": "abc",
        "steps_trained": 70,
        "key": key_of(study.trials[0]),
        "continues": 0,
    }
    assert study.ask().number == 1  # it is the next one


def test_a_trial_that_was_queued_but_not_begun_keeps_its_point() -> None:
    study = opened()
    study.tell(study.ask(), state=TrialState.FAIL)  # interrupted before it had its parameters
    requeue(study, study.trials[0])
    assert ask(study).params == POINT


def test_a_continued_trial_is_counted_once() -> None:
    study = opened()
    for _ in range(2):
        trial = ask(study)
        study.tell(trial, state=TrialState.FAIL)
        requeue(study, study.trials[trial.number])
    study.tell(ask(study, plan=plan(300), metrics={"valid_accuracy": 70.0}), 70.0)
    record = study_record(study)
    assert [(trial.number, trial.state) for trial in record.trials] == [(2, "complete")]
    assert record.counts.failed == 0
    assert [trial.number for trial in current(study.trials)] == [2]


def test_only_trials_of_dead_drivers_are_recovered() -> None:
    study, recording = opened(), Recording()
    dead, alive, elsewhere, old = (
        ask(study, driver=driver) for driver in (DEAD, process_id(), ELSEWHERE, OF_AN_OLD_VERSION)
    )
    starting = study.ask()  # where nothing is locked another driver may be about to sign it
    assert [trial.number for trial in recover(study, recording, locked=False)] == [dead.number]
    states = {trial.number: trial.state for trial in study.trials}
    assert states == {
        dead.number: TrialState.FAIL,
        alive.number: TrialState.RUNNING,
        elsewhere.number: TrialState.RUNNING,
        old.number: TrialState.RUNNING,
        starting.number: TrialState.RUNNING,
        5: TrialState.WAITING,
    }
    assert study.trials[dead.number].user_attrs["reason"] == "its driver was killed"
    assert recording.events == [
        TrialFinished(key="trial-0000", state=RunEnd.FAILED, reason="its driver was killed")
    ]


def test_whoever_asks_holds_the_lock_so_an_unsigned_trial_is_nobodys_where_there_is_one() -> None:
    study = opened()
    unsigned = study.ask()
    assert [dead.number for dead in recover(study, Recording(), locked=True)] == [unsigned.number]


def test_a_driver_with_another_pid_is_dead() -> None:
    study = opened()
    gone = next(pid for pid in range(2**22 - 1, 1, -1) if not psutil.pid_exists(pid))
    trial = ask(study, driver={**process_id(), "pid": gone})
    assert [dead.number for dead in recover(study, Recording(), locked=True)] == [trial.number]


def test_a_driver_puts_back_its_own_trials_under_their_own_numbers() -> None:
    study = opened()
    ask(study, driver=process_id())
    other = ask(study, driver=DEAD)
    give_back(study, reason="interrupted")
    assert study.trials[0].state == TrialState.WAITING
    assert study.trials[0].user_attrs["reason"] == "interrupted"
    assert study.trials[other.number].state == TrialState.RUNNING
    assert len(study.trials) == 2


def test_a_trial_that_is_being_put_back_is_not_taken_for_a_killed_drivers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, recording = opened(), Recording()
    trial = ask(study, driver=process_id())
    into_the_queue = study._storage.set_trial_state_values

    def another_driver_starts(*args: Any) -> None:
        assert recover(study, recording, locked=True) == []
        into_the_queue(*args)

    monkeypatch.setattr(study._storage, "set_trial_state_values", another_driver_starts)
    put_back(study, trial._trial_id, reason="interrupted")
    assert [trial.state for trial in study.trials] == [TrialState.WAITING]
    assert recording.events == []


def test_what_another_driver_has_just_taken_out_of_the_queue_is_not_put_back_again() -> None:
    study = opened()
    put_back(study, ask(study, driver=process_id())._trial_id, reason="interrupted")
    study.ask()  # the other one signs it in a moment
    give_back(study, reason="interrupted")
    assert study.trials[0].state == TrialState.RUNNING


def test_a_driver_may_be_killed_before_it_signs_what_another_one_left() -> None:
    study = opened()
    study.ask().set_user_attr("driver", {**DEAD, LEFT: True})
    assert recover(study, Recording(), locked=False) == []  # it may be about to
    assert len(recover(study, Recording(), locked=True)) == 1


def test_two_drivers_that_find_the_same_dead_trial_continue_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = opened()
    ask(study, driver=DEAD)
    seen = study.get_trials(states=(TrialState.RUNNING,))
    recover(study, Recording(), locked=True)

    def stale_view(**_: Any) -> list[FrozenTrial]:
        return seen

    monkeypatch.setattr(study, "get_trials", stale_view)
    assert recover(study, Recording(), locked=True) == []
    monkeypatch.undo()
    assert len(study.trials) == 2


def test_a_trial_as_reports_read_it() -> None:
    study = opened()
    trial = ask(
        study,
        plan=plan(300),
        metrics={"valid_accuracy": 70.5, "valid_loss": 1.5},
        steps_trained=350,
        mlflow_run_id="abc",
        mlflow_run_url="http://x/abc",
        checkpoint="/checkpoints/trial-0000",
    )
    trial.report(60.0, step=150)
    trial.report(70.0, step=300)
    study.tell(trial, 70.5)
    (record,) = study_record(study).trials
    assert (record.number, record.key, record.state) == (0, "trial-0000", "complete")
    assert (record.seed_lr, record.explore_fraction, record.value) == (0.05, 0.5, 70.5)
    assert record.curve == (
        Evaluation(step=150, metrics={"valid_accuracy": 60.0}),
        Evaluation(step=300, metrics={"valid_accuracy": 70.0}),
    )
    assert (record.steps.trained, record.budget, record.seed) == (350, 300, 1)
    assert (record.run_id, record.run_url) == ("abc", "http://x/abc")
    assert record.checkpoint == "/checkpoints/trial-0000"
    assert record.seconds is not None


def test_the_curve_of_a_trial_is_the_mean_of_the_replicates_that_have_a_step() -> None:
    study = opened(replicates=2)
    replicates = [
        RunRecord(seed=1, state="complete", value=70.0, steps=StepCount(trained=300)),
        RunRecord(seed=2, state="running", steps=StepCount(reused=150, reached=150)),
    ]
    noted = {replicate_attr(r): record.model_dump() for r, record in enumerate(replicates)}
    trial = ask(study, plan=plan(300), replicates=2, steps_reused=150, **noted)
    for step, mean in {150: 60.0, 300: 70.0, 300 + 150: 58.0}.items():
        trial.report(mean, step=step)
    (record,) = study_record(study).trials
    assert [(at.step, at.metrics["valid_accuracy"]) for at in record.curve] == [
        (150, 58.0),
        (300, 70.0),
    ]
    assert record.replicates == tuple(replicates)
    assert (record.budget, record.steps.reused) == (600, 150)


def test_replicates_of_a_fused_trial_share_an_attribute() -> None:
    study = opened(replicates=2)
    curve = tuple(Evaluation(step=step, metrics={"valid_accuracy": 60.5}) for step in (150, 300))
    replicates = (
        RunRecord(seed=1, state="complete", value=70.0, curve=curve),
        RunRecord(seed=2, state="pruned", steps=StepCount(trained=150), curve=curve[:1]),
    )
    run = StepCount(trained=300, reached=300)
    noted = fused_attr(replicates, watched="valid_accuracy", run=run)
    trial = ask(study, plan=plan(300), replicates=1, fused=noted)
    (record,) = study_record(study).trials
    assert record.replicates == replicates
    assert record.budget == 2 * 300
    assert run_of(trial.user_attrs) == run


def test_a_study_made_before_replicates_could_be_fused_goes_on_without() -> None:
    storage = InMemoryStorage()
    made = opened(storage, replicates=2)
    assert spec_of(made).fuse
    old = {name: value for name, value in made.user_attrs["spec"].items() if name != "fuse"}
    made.set_user_attr("spec", old)
    for _ in range(2):
        assert not spec_of(opened(storage, replicates=2)).fuse


def test_a_study_goes_on_with_the_pruner_that_it_began_with() -> None:
    storage = InMemoryStorage()
    assert spec_of(opened(storage)).pruner == "none"
    assert spec_of(opened(storage, sampler="tpe")).pruner == "none"
    assert spec_of(opened(storage, pruner="median")).pruner == "median"
    assert spec_of(opened(storage)).pruner == "median"


@pytest.mark.parametrize(("goal", "began_with"), [("best", "knee"), ("ridge", "none")])
def test_a_study_made_before_none_was_the_default_keeps_knee(goal: str, began_with: str) -> None:
    storage = InMemoryStorage()
    made = opened(storage, goal=goal)
    made.set_user_attr("spec", made.user_attrs["spec"] | {"pruner": None})
    assert spec_of(made).acting_pruner == began_with
    assert spec_of(opened(storage, goal=goal)).acting_pruner == began_with


def test_a_pruned_trial_has_no_value_and_a_stale_one_has_a_reason() -> None:
    study = opened()
    pruned = ask(study, reason="pruned at step 150", plan=plan(300))
    pruned.report(10.0, step=150)
    study.tell(pruned, state=TrialState.PRUNED)
    study.tell(ask(study), state=TrialState.FAIL)  # as Optuna tells a driver that stops beating
    first, second = study_record(study).trials
    assert (first.state, first.value, first.reason) == ("pruned", None, "pruned at step 150")
    assert (second.state, second.reason) == ("failed", "its driver was killed")


def test_a_trial_between_its_two_parameters_does_not_disturb_a_reader() -> None:
    study = opened()
    study.ask().suggest_float("seed_lr", 0.005, 0.128, log=True)
    assert study_record(study).trials == ()


@pytest.mark.parametrize(
    ("objective", "sign", "direction"), [("accuracy", 1, "maximize"), ("loss", -1, "minimize")]
)
def test_what_is_reported_improves_in_the_direction_of_the_objective(
    objective: str, sign: int, direction: str
) -> None:
    """digits watches the accuracy; a study of the loss is told the negative accuracy."""
    study = opened(settings=(f"recipe.objective={objective}",))
    trial = ask(study)
    trial.report(sign * 60.0, step=50)
    record = study_record(study)
    assert reported_sign(opened_recipe(objective)) == sign
    assert record.direction == direction
    assert record.metric == f"valid_{objective}"
    assert record.trials[0].curve == (Evaluation(step=50, metrics={"valid_accuracy": 60.0}),)


def opened_recipe(objective: str) -> Any:
    return resolve_asked(task="digits", settings=(f"recipe.objective={objective}",)).typed_recipe


def test_a_baseline_is_kept_once_per_schedule_and_seed_lr() -> None:
    study = opened()
    for value in (60.0, 61.0):
        record_baseline(
            study,
            BaselineRecord(schedule="cosine", seed=1, seed_lr=0.05, state="complete", value=value),
        )
    (baseline,) = study_record(study).baselines
    assert baseline.value == 61.0
