"""Steps are counted once, whoever trained them."""

from knee_tune.records.values import StepCount


def test_a_run_from_scratch_reuses_nothing() -> None:
    assert StepCount().after(first=0, last=100) == StepCount(trained=100, reused=0, reached=100)


def test_a_branch_reuses_its_trunk() -> None:
    assert StepCount().after(first=60, last=100) == StepCount(trained=40, reused=60, reached=100)


def test_a_retry_from_a_checkpoint_reuses_nothing_and_pays_twice_for_what_was_lost() -> None:
    count = StepCount().after(first=0, last=50).after(first=40, last=100)
    assert count == StepCount(trained=110, reused=0, reached=100)


def test_a_retry_that_finds_the_trunk_longer_reuses_the_difference() -> None:
    count = StepCount().after(first=0, last=20).after(first=60, last=100)
    assert count == StepCount(trained=60, reused=40, reached=100)


def test_an_answered_run_is_all_reuse() -> None:
    assert StepCount().after(first=100, last=100) == StepCount(reused=100, reached=100)


def test_runs_add_up() -> None:
    one, other = (
        StepCount(trained=1, reused=2, reached=3),
        StepCount(trained=10, reused=0, reached=10),
    )
    assert one + other == StepCount(trained=11, reused=2, reached=13)


def test_a_replica_of_a_fused_run_pays_for_its_own_steps() -> None:
    run = StepCount().after(first=0, last=100)
    assert run.of_replica(first=0, last=100) == run
    assert run.of_replica(first=60, last=100) == StepCount(trained=40, reused=60, reached=100)
    assert run.of_replica(first=60, last=80) == StepCount(trained=20, reused=60, reached=80)


def test_a_replica_of_a_run_on_a_trunk_or_from_a_record_reuses_what_the_run_did() -> None:
    branch = StepCount().after(first=30, last=100)
    assert branch.of_replica(first=0, last=100) == branch
    answered = StepCount().after(first=100, last=100)
    assert answered.of_replica(first=60, last=100) == StepCount(reused=100, reached=100)


def test_what_a_fused_run_lost_every_replica_trained_twice() -> None:
    run = StepCount().after(first=0, last=50).after(first=40, last=100)
    assert run.of_replica(first=0, last=100) == StepCount(trained=110, reached=100)
