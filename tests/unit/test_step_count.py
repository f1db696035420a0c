"""Steps are counted once, whoever trained them."""

from knee_tune.specs.steps import StepCount


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
