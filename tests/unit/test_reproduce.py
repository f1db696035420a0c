"""How a request to reproduce a table becomes a study, and what is said of the outcome."""

import os
from typing import Any

import pytest

from knee_tune.commands import reproduce
from knee_tune.commands.reproduce import as_json, designs, resolve_table, table_rows
from knee_tune.commands.workers import Device, GroupOptions
from knee_tune.config.study import StudySpec
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import RunRecord


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(reproduce, "has_gpu", lambda device: device == "cuda")


def asked(
    table: str = "table16", *, device: Device = "auto", **changes: Any
) -> tuple[StudySpec, GroupOptions]:
    """What a request for a table becomes."""
    changes = {"task": "digits", **changes}
    spec, options = resolve_table(table, options=GroupOptions(device=device), **changes)
    return spec, options


def test_tables_and_tasks() -> None:
    commands = {design.command for design in designs()}
    assert {"table16 --task digits", "table15 --task iwslt --preset demo"} <= commands


def test_one_study_beside_two_tables() -> None:
    named = {design.table for design in designs() if design.study == "table1-cifar10-tiny"}
    assert named == {"table1", "table3"}


def test_replicas_are_spread_over_all_cores() -> None:
    study, options = asked()
    assert (study.name, study.replicates) == ("table16-digits", 20)
    assert (study.nproc, options.nproc, options.slots) == (4, 4, 1)
    assert not options.nproc_asked


def test_a_rank_without_a_replica_is_not_started() -> None:
    assert asked(seeds=2)[1].nproc == 2


def test_one_rank_drives_a_gpu() -> None:
    assert asked(device="cuda")[1].nproc == 1


def test_one_by_one_trains_a_run_on_every_core() -> None:
    study, options = asked(fuse=False)
    assert (study.fuse, study.name) == (False, "table16-digits-one-by-one")
    assert (options.nproc, options.slots) == (1, 4)


def test_rows_of_a_table_train_one_on_every_core() -> None:
    table: dict[str, Any] = {"task": "cifar10", "scale": 0.2}
    study, options = asked("table1", **table)
    assert (study.name, study.scale) == ("table1-cifar10-scale0.2", 0.2)
    assert (study.nproc, options.nproc, options.slots) == (1, 1, 4)
    assert asked("table1", device="cuda", **table)[1].slots == 1
    assert asked("table1", slots=2, **table)[1].slots == 2
    assert asked("table1", task="cifar10", fuse=False, seeds=2)[0].name == (
        "table1-cifar10-2-seeds"
    )


def test_a_task_that_does_not_fuse_trains_a_run_on_every_core() -> None:
    study, options = asked(task="cifar10", preset="tiny")
    assert (study.name, options.nproc, options.slots) == ("table16-cifar10-tiny", 1, 4)
    again = asked(task="cifar10", preset="tiny", seeds=1)
    assert again[1].slots == 4  # trials, whose seeds take turns


def test_a_scaled_table_is_a_study_of_its_own() -> None:
    study, _ = asked(scale=0.5, seeds=5)
    assert study.name == "table16-digits-scale0.5-5-seeds"
    assert study.recipe["epochs"] == 15
    assert asked(scale=1.0)[0].name == "table16-digits"


def test_a_study_file_that_names_its_ranks_keeps_them() -> None:
    assert asked("table15", task="iwslt", preset="demo")[1].nproc == 2


def test_what_was_asked_for_wins() -> None:
    study, options = asked(nproc=3, seeds=5, name="mine")
    assert (study.name, study.replicates, options.nproc) == ("mine", 5, 3)
    assert options.nproc_asked


def study_of(*trials: TrialRecord) -> StudyRecord:
    return StudyRecord(
        name="mine",
        task="digits",
        metric="valid_accuracy",
        direction="maximize",
        trials=trials,
        spec=asked()[0],
    )


def trial(number: int, *, started: float, seconds: float, fraction: float = 0.5) -> TrialRecord:
    return TrialRecord(
        number=number,
        seed=1,
        seed_lr=0.005,
        explore_fraction=fraction,
        state="complete",
        value=91.0,
        started=started,
        seconds=seconds,
        replicates=tuple(
            RunRecord(seed=seed, metrics={"valid_accuracy": accuracy})
            for seed, accuracy in ((1, 90.0), (2, 92.0))
        ),
    )


def test_time_counts_once_whatever_was_trained_in_it() -> None:
    together = [trial(0, started=100, seconds=10), trial(1, started=105, seconds=10)]
    the_next_day = trial(2, started=100_000, seconds=5)
    assert study_of(*together, the_next_day).seconds == 20


def test_rows_are_means_over_the_seeds_in_epochs_of_the_recipe() -> None:
    fractions = (0.9, 0.3)
    trials = [trial(n, started=0, seconds=1, fraction=f) for n, f in enumerate(fractions)]
    (short, long) = table_rows(study_of(*trials))
    assert (short.explore_epochs, long.explore_epochs) == (9, 27)
    assert short.metrics == {"valid_accuracy": 91.0}
    assert short.std == {"valid_accuracy": pytest.approx(2**0.5)}


def test_without_statistics_the_numbers_are_missing_not_wrong() -> None:
    said = as_json("table16", study_of(), ridge=None, report=None)
    assert said["optimal"] == []
    assert said["spearman"] is said["crossover_p"] is said["verdict"] is None
