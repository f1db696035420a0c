"""How a request to reproduce a table becomes a study, and what is said of the outcome."""

import os
from dataclasses import replace

import pytest

from knee_tune.commands import reproduce
from knee_tune.commands.reproduce import Reproduction, ReproductionRequest, designs
from knee_tune.records.study import ReplicateRecord, StudyRecord, TrialRecord


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(reproduce, "has_gpu", lambda device: device == "cuda")


def digits(**changes: object) -> ReproductionRequest:
    return ReproductionRequest(table="table16", task="digits", **changes)  # type: ignore[arg-type]


def test_tables_and_tasks() -> None:
    commands = {design.command for design in designs()}
    assert {"table16 --task digits", "table15 --task iwslt --preset demo"} <= commands


def test_one_study_beside_two_tables() -> None:
    named = {design.table for design in designs() if design.study == "table1-cifar10-tiny"}
    assert named == {"table1", "table3"}


def test_replicas_are_spread_over_all_cores() -> None:
    study, _, options = digits().resolve()
    assert (study.name, study.replicates) == ("table16-digits", 20)
    assert (study.nproc, options.nproc, options.slots) == (4, 4, 1)
    assert not options.nproc_asked


def test_a_rank_without_a_replica_is_not_started() -> None:
    assert digits(seeds=2).resolve()[2].nproc == 2


def test_one_rank_drives_a_gpu() -> None:
    assert digits(device="cuda").resolve()[2].nproc == 1


def test_one_by_one_trains_a_run_on_every_core() -> None:
    study, _, options = digits(fuse=False).resolve()
    assert (study.fuse, study.name) == (False, "table16-digits-one-by-one")
    assert (options.nproc, options.slots) == (1, 4)


def test_rows_of_a_table_train_one_on_every_core() -> None:
    table = ReproductionRequest(table="table1", task="cifar10", scale=0.2)
    study, _, options = table.resolve()
    assert (study.name, study.scale) == ("table1-cifar10-scale0.2", 0.2)
    assert (study.nproc, options.nproc, options.slots) == (1, 1, 4)
    assert replace(table, device="cuda").resolve()[2].slots == 1
    assert replace(table, slots=2).resolve()[2].slots == 2
    assert replace(table, scale=None, fuse=False, seeds=2).resolve()[0].name == (
        "table1-cifar10-2-seeds"
    )


def test_a_task_that_does_not_fuse_trains_a_run_on_every_core() -> None:
    table = ReproductionRequest(table="table16", task="cifar10", preset="tiny")
    study, _, options = table.resolve()
    assert (study.name, options.nproc, options.slots) == ("table16-cifar10-tiny", 1, 4)
    assert replace(table, seeds=1).resolve()[2].slots == 4  # trials, whose seeds take turns


def test_a_scaled_table_is_a_study_of_its_own() -> None:
    study, recipe, _ = digits(scale=0.5, seeds=5).resolve()
    assert study.name == "table16-digits-scale0.5-5-seeds"
    assert recipe.epochs == 15
    assert digits(scale=1.0).resolve()[0].name == "table16-digits"


def test_a_study_file_that_names_its_ranks_keeps_them() -> None:
    request = ReproductionRequest(table="table15", task="iwslt", preset="demo")
    assert request.resolve()[2].nproc == 2


def test_what_was_asked_for_wins() -> None:
    study, _, options = digits(nproc=3, seeds=5, name="mine").resolve()
    assert (study.name, study.replicates, options.nproc) == ("mine", 5, 3)
    assert options.nproc_asked


def outcome(*trials: TrialRecord) -> Reproduction:
    spec, *_ = digits().resolve()
    record = StudyRecord(
        name="mine",
        task="digits",
        metric="valid_accuracy",
        direction="maximize",
        trials=trials,
        spec=spec,
    )
    return Reproduction(table="table16", record=record, ridge=None, report=None)


def trial(number: int, *, started: float, seconds: float, fraction: float = 0.5) -> TrialRecord:
    return TrialRecord(
        number=number,
        seed_lr=0.005,
        explore_fraction=fraction,
        state="complete",
        value=91.0,
        started=started,
        seconds=seconds,
        replicates=tuple(
            ReplicateRecord(seed=seed, metrics={"valid_accuracy": accuracy})
            for seed, accuracy in ((1, 90.0), (2, 92.0))
        ),
    )


def test_time_counts_once_whatever_was_trained_in_it() -> None:
    together = [trial(0, started=100, seconds=10), trial(1, started=105, seconds=10)]
    the_next_day = trial(2, started=100_000, seconds=5)
    assert outcome(*together, the_next_day).record.seconds == 20


def test_rows_are_means_over_the_seeds_in_epochs_of_the_recipe() -> None:
    (short, long) = outcome(
        trial(0, started=0, seconds=1, fraction=0.9), trial(1, started=0, seconds=1, fraction=0.3)
    ).rows
    assert (short.explore_epochs, long.explore_epochs) == (9, 27)
    assert short.metrics == {"valid_accuracy": 91.0}
    assert short.std == {"valid_accuracy": pytest.approx(2**0.5)}


def test_without_statistics_the_numbers_are_missing_not_wrong() -> None:
    said = outcome().as_json()
    assert said["optimal"] == []
    assert said["spearman"] is said["crossover_p"] is said["verdict"] is None
