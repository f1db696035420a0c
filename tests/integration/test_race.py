"""``--total-runs`` in a whole ``run``: what is trained, what is kept, and how it goes on."""

import pytest

from knee_tune.study.attributes import all_extra_steps
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study
from tests.integration.test_confirmation import (
    BETTER,
    DEFAULT,
    WORSE,
    Arithmetic,
    Bench,
    a_lucky_trial,
    a_real_difference,
    aliases,
    bench,
    confirmation_of,
    tracked,
)

__all__ = ["bench", "tracked"]

RUN = 4
"""Steps of a run."""


def trained(bench: Bench) -> int:
    """Steps of all trials and of all other runs, as the study counts them."""
    study = load_study(open_storage(bench.places(tracked=False).storage_url), "s")
    trials = sum(trial.user_attrs["steps_trained"] for trial in study.trials)
    return int(trials) + all_extra_steps(study).trained


def test_who_is_behind_leaves_and_the_rest_gets_more_seeds(bench: Bench) -> None:
    ranks = Arithmetic(a_real_difference)
    summary = bench.run(ranks, total_runs=12)
    found = confirmation_of(summary)
    seeds = {each.seed_lr: len(each.runs) for each in found.candidates}
    assert seeds == {BETTER: 3, DEFAULT: 3, WORSE: 2}  # three pairs, to have an interval
    assert found.race is not None
    assert found.race.ended == "the others are behind"
    assert found.race.lead is not None
    assert found.race.lead.low is not None
    assert found.race.lead.low > 0
    assert found.confirmed
    assert summary.record.winner is not None
    assert (summary.record.winner.seed_lr, summary.record.winner.seeds) == (BETTER, 3)
    assert f"seed LR {BETTER:g}, explore 50% wins, " in bench.said
    assert trained(bench) == (3 + 8) * RUN <= 12 * RUN


def test_a_race_ends_with_its_total_and_a_larger_one_goes_on(bench: Bench) -> None:
    ranks = Arithmetic(a_lucky_trial)
    first = confirmation_of(bench.run(ranks, total_runs=8))
    assert trained(bench) <= 8 * RUN
    assert first.race is not None
    assert "does not fit" in first.race.ended
    more = Arithmetic(a_lucky_trial)
    summary = bench.run(more, total_runs=16)
    assert len(confirmation_of(summary).seeds) > len(first.seeds)
    assert not {*ranks.fresh} & {*more.fresh}
    assert trained(bench) <= 16 * RUN


def test_a_race_that_was_interrupted_comes_to_the_same_end(bench: Bench) -> None:
    interrupted = Arithmetic(a_real_difference)
    interrupted.interrupt_at = 5
    with pytest.raises(KeyboardInterrupt):
        bench.run(interrupted, total_runs=12)
    rest = Arithmetic(a_real_difference)
    found = confirmation_of(bench.run(rest, total_runs=12))
    assert {each.seed_lr: len(each.runs) for each in found.candidates} == {
        BETTER: 3,
        DEFAULT: 3,
        WORSE: 2,
    }
    assert {*rest.fresh} & {*interrupted.fresh} == {interrupted.fresh[-1]}


def test_a_winner_that_is_sure_is_registered_as_champion(tracked: Bench) -> None:
    tracked.run(Arithmetic(a_real_difference), total_runs=12, tracked=True)
    assert aliases(tracked.home) == {"champion": f"{BETTER:g}"}
