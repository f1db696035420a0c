"""What a study has found out."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from knee_tune.cli.summary import print_status
from knee_tune.config.recipe import Direction, ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.study import StudySpec
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import RunState, StepCount

SPEC = StudySpec(
    name="knee-toy-1ep",
    task="toy",
    preset="full",
    recipe={"seed_lr": 0.1},
    space=SearchSpace(
        seed_lr=SeedLRSpace(values=(0.1,)), explore_fraction=ExploreFractionSpace(values=(0.5,))
    ),
)


def trial(
    number: int,
    state: RunState,
    value: float | None = None,
    *,
    trained: int = 0,
    reused: int = 0,
    **facts: Any,
) -> TrialRecord:
    return TrialRecord(
        seed=1,
        steps=StepCount(trained=trained, reused=reused),
        number=number,
        seed_lr=0.1 * (number + 1),
        explore_fraction=0.5,
        state=state,
        value=value,
        budget=100,
        **facts,
    )


def study(*trials: TrialRecord, direction: Direction = "minimize") -> StudyRecord:
    return StudyRecord(
        name="knee-toy-1ep",
        task="toy",
        metric="valid_ppl",
        direction=direction,
        trials=trials,
        spec=SPEC,
    )


def test_the_status_of_a_study() -> None:
    record = study(
        trial(0, "complete", 5.0, trained=100),
        trial(1, "pruned", 1.0, trained=40, steps_pruned=60),
        trial(2, "complete", 4.5, trained=50, reused=50),
        trial(3, "failed", trained=7, reused=20),
        trial(4, "running", trained=3, reused=20),
        trial(5, "waiting"),
    )
    assert json.loads(json.dumps(record.status_as_json())) == {
        "study": "knee-toy-1ep",
        "counts": {"complete": 2, "pruned": 1, "failed": 1, "running": 1},
        "best": {
            "trial": 2,
            "seed_lr": pytest.approx(0.3),
            "explore_fraction": 0.5,
            "value": 4.5,
            "metric": "valid_ppl",
            "confirmed": "not tried",
        },
        "steps": {"trained": 200, "independent": 300, "reused": 50, "pruned": 60, "recorded": 0},
        "audit": None,
    }


def test_what_was_saved_is_all_that_was_not_trained() -> None:
    steps = study(
        trial(0, "complete", 5.0, trained=100),
        trial(1, "complete", 5.0, trained=30, reused=70),
        trial(2, "pruned", trained=10, reused=30, steps_pruned=60),
        trial(3, "complete", 5.0, reused=100, steps_recorded=100),
    ).steps
    assert steps.trained + steps.reused + steps.pruned == steps.independent == 400
    assert (steps.reused, steps.recorded) == (200, 100)
    assert steps.words == [
        "steps trained: 140 of 400 that independent trials would take (35%)",
        "steps saved: 100 from trunks (an explore phase that trials share is trained once), "
        "100 from records (the same run was trained before), "
        "60 by pruning (trials that were ended early)",
    ]


def test_steps_that_led_nowhere_are_named() -> None:
    failed = trial(0, "failed", trained=30)
    assert study(failed).steps.words == []
    *_, lost = study(failed, trial(1, "complete", 5.0, trained=110)).steps.words
    assert lost == "steps of trials that failed, went back or still run: 40"


def test_a_study_without_a_complete_trial_has_no_best() -> None:
    record = study(trial(0, "pruned", 1.0))
    assert record.best is None
    assert record.status_as_json()["best"] is None


def test_the_best_follows_the_direction_and_the_earlier_of_equals_wins() -> None:
    trials = (trial(0, "complete", 1.0), trial(1, "complete", 2.0), trial(2, "complete", 2.0))
    highest = study(*trials, direction="maximize").best
    lowest = study(*trials).best
    assert highest is not None
    assert lowest is not None
    assert (highest.number, lowest.number) == (1, 0)


def test_the_best_and_the_newest_of_many_are_shown() -> None:
    many = study(*(trial(number, "complete", float(abs(number - 20))) for number in range(100)))
    shown = [each.number for each in many.shown(best=3, newest=4)]
    assert shown == [19, 20, 21, 96, 97, 98, 99]
    assert many.shown(best=50, newest=50) == many.trials
    assert many.shown(best=45, newest=50) == many.trials  # a sentence would take as much room
    output = StringIO()
    print_status(Console(file=output, width=200), many)
    assert "(15 of 100 trials: the best 5 and the newest 10; " in output.getvalue()
    assert (
        "knee-tune status knee-toy-1ep --all, in this home, shows every one)" in output.getvalue()
    )
    assert len(output.getvalue().splitlines()) < 24  # a terminal's
    every = StringIO()
    print_status(Console(file=every, width=200), many, every=True)
    assert len(every.getvalue().splitlines()) > 100


def test_a_record_survives_being_stored() -> None:
    record = study(trial(0, "complete", 5.0, curve=[{"step": 10, "metrics": {"valid_ppl": 5.0}}]))
    assert StudyRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        (["now", "now"], ""),
        (["", "now"], "trial 0 was trained by other code or libraries (fingerprint not noted, now"),
        (["a", "a", "a", "now", "a"], "trials 0-2, 4 were trained by other code or libraries"),
        (["a", "now"] * 9, "9 trials were trained by other code or libraries (fingerprint a"),
        (["a", "b", "now"], "trial 0 and trial 1 were trained by other code or libraries"),
    ],
)
def test_a_study_knows_what_other_code_has_trained(codes: list[str], said: str) -> None:
    done = [trial(number, "complete", 1.0, code=code) for number, code in enumerate(codes)]
    lost = trial(len(codes), "failed", code="another")
    words = study(*done, lost).by_other_code("now")
    assert words.startswith(said)
    assert bool(words) == bool(said)
