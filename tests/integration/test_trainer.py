"""The trainer: runs are trained once, in whatever order, thread or driver they are asked for."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from knee_tune.plans.plan import TrainPlan, checkpoint_path, checkpoint_paths
from knee_tune.plans.step_note import StepNote, begin_note, counted_elsewhere, read_note
from knee_tune.records.values import StepCount
from knee_tune.runs import trainer
from knee_tune.runs.run_cache import RECORD
from knee_tune.runs.trainer import MACHINE_STARTS, OWN_STARTS, RunResult, Trainer
from knee_tune.runs.trunks import TrunkStore
from knee_tune.workers.protocol import Callbacks, Decision, Done, Failure, Report
from tests.fake_runner import Died, What, at
from tests.pretend_ranks import TOTAL, PretendRanks, knee_plan, save_state

PLENTY = 1_000_000
SOON = 20.0
"""Seconds after which a test gives up; what it waits for takes a fraction of one."""


@dataclass
class Asker:
    """Has runs trained, and remembers what it was told."""

    trainer: Trainer
    reports: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    counts: list[StepCount] = field(default_factory=list)
    stop_at: int | None = None
    on_progress: Callable[[int], None] = lambda step: None

    def ask(self, plan: TrainPlan, *, steps: Callable[[], StepCount] = StepCount) -> RunResult:
        def on_report(report: Report) -> Decision:
            self.reports.append(report.step)
            return Decision(stop=report.step == self.stop_at)

        return self.trainer.train(
            plan,
            Callbacks(
                on_report=on_report,
                on_line=self.lines.append,
                on_progress=lambda step: self.on_progress(step),
            ),
            steps=steps,
            on_steps=self.counts.append,
        )


def asker(home: Path, ranks: PretendRanks, *, limit: int = PLENTY) -> Asker:
    return Asker(Trainer(ranks, trunks=TrunkStore(home / "trunks", limit=limit)))


def done(result: RunResult) -> Done:
    assert isinstance(result.outcome, Done), result.outcome
    return result.outcome


def test_a_finished_run_is_answered_from_its_record(tmp_path: Path) -> None:
    ranks = PretendRanks()
    plan = knee_plan(tmp_path, knee=50)
    first = asker(tmp_path, ranks).ask(plan)
    assert first.steps == StepCount(trained=TOTAL, reached=TOTAL)
    assert checkpoint_paths(plan.checkpoint_dir) == []  # its LR is zero: nothing goes on here

    again = asker(tmp_path, PretendRanks(at(1, AssertionError("trained again"))))
    again.stop_at = 30  # which decides nothing any more
    answer = again.ask(plan)
    assert answer.cached
    assert not first.cached
    assert done(answer).result == done(first).result
    assert (done(answer).state, done(answer).steps_trained) == ("complete", 0)
    assert answer.steps == again.counts[-1] == StepCount(reused=TOTAL, reached=TOTAL)
    assert again.reports == plan.evaluation_steps()


def test_a_run_that_shares_nothing_is_recorded_as_well(tmp_path: Path) -> None:
    ranks = PretendRanks()
    plan = knee_plan(tmp_path, knee=50).model_copy(update={"trunk": None})
    asking = Asker(Trainer(ranks, trunks=None))
    assert [asking.ask(plan).cached for _ in range(2)] == [False, True]
    assert not (tmp_path / "trunks").exists()


def test_a_diverged_run_would_diverge_again(tmp_path: Path) -> None:
    plan = knee_plan(tmp_path, knee=50)
    asking = asker(tmp_path, PretendRanks(at(35, ArithmeticError("non-finite loss"))))
    first, again = asking.ask(plan), asking.ask(plan)
    for result in (first, again):
        assert (done(result).state, done(result).reason) == ("diverged", "non-finite loss")
    assert first.steps == StepCount(trained=35, reached=35)
    assert again.steps == StepCount(reused=35, reached=35)
    assert asking.reports == 2 * [10, 20, 30]


def test_a_pruned_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Another study may want all of it."""
    plan = knee_plan(tmp_path, knee=10)
    pruning, finishing = asker(tmp_path, PretendRanks()), asker(tmp_path, PretendRanks())
    pruning.stop_at = 40
    assert done(pruning.ask(plan)).state == "stopped"
    result = finishing.ask(plan)
    assert done(result).state == "complete"
    assert result.steps == StepCount(trained=60, reused=40, reached=TOTAL)
    assert asker(tmp_path, PretendRanks()).ask(plan).cached


def test_branches_train_what_their_trunk_lacks(tmp_path: Path) -> None:
    ranks = PretendRanks()
    asking = asker(tmp_path, ranks)
    costs = {knee: asking.ask(knee_plan(tmp_path, knee=knee)).steps for knee in (50, 20, 80, 0)}
    assert costs == {
        50: StepCount(trained=100, reached=100),
        20: StepCount(trained=80, reused=20, reached=100),
        80: StepCount(trained=50, reused=50, reached=100),
        0: StepCount(trained=100, reached=100),
    }
    (entry,) = TrunkStore(tmp_path / "trunks", limit=PLENTY).entries()
    assert list(entry.sizes) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert entry.note is not None
    assert (entry.note.task, entry.note.seed_lr, entry.note.use) == ("digits", 0.1, 4)


def test_a_group_that_dies_starts_again_from_its_newest_checkpoint(tmp_path: Path) -> None:
    asking = asker(tmp_path, PretendRanks(at(35, Died()), at(52, Died())))
    result = asking.ask(knee_plan(tmp_path, knee=20, name="trial-0007"))
    assert done(result).state == "complete"
    assert result.steps == StepCount(trained=35 + 22 + 50, reached=TOTAL)
    assert asking.counts == [
        StepCount(trained=35, reached=35),
        StepCount(trained=35 + 22, reached=52),
        result.steps,
    ]
    assert asking.lines == [
        "trial-0007: died: signal; starting again from its newest checkpoint (1 of 5)",
        "trial-0007: died: signal; starting again from its newest checkpoint (1 of 5)",
    ]


@pytest.mark.parametrize("noted", [StepCount(), StepCount(trained=30, reached=30)])
def test_steps_of_an_attempt_whose_driver_was_killed_are_counted(
    tmp_path: Path, noted: StepCount
) -> None:
    """Nobody could note its last steps; the checkpoint it left is no saving."""
    plan = knee_plan(tmp_path, knee=50)
    plan.log_dir.parent.mkdir(parents=True)  # by the driver's command
    begin_note(plan, StepCount())
    rank = StepNote(plan, first=0)
    for step in range(1, 48):
        rank.write(step)
    save_state(plan.trunk.folder if plan.trunk else tmp_path, 40)
    asking = asker(tmp_path, PretendRanks())
    result = asking.ask(plan, steps=lambda: noted)
    assert asking.counts[0] == StepCount(trained=47, reached=47)
    assert result.steps == StepCount(trained=47 + 60, reached=TOTAL)
    assert not list(plan.log_dir.iterdir())


def test_steps_that_were_counted_before_the_kill_are_not_counted_again(tmp_path: Path) -> None:
    plan = knee_plan(tmp_path, knee=50)
    plan.log_dir.parent.mkdir(parents=True)  # by the driver's command
    begin_note(plan, StepCount())
    StepNote(plan, first=0).write(47)
    save_state(plan.checkpoint_dir, 40)
    counted = StepCount(trained=47, reached=47)
    result = asker(tmp_path, PretendRanks()).ask(plan, steps=lambda: counted)
    assert result.steps == StepCount(trained=47 + 60, reached=TOTAL)


def test_another_study_does_not_pay_for_what_a_killed_one_lost(tmp_path: Path) -> None:
    killed = knee_plan(tmp_path, knee=50, name="killed")
    killed.log_dir.parent.mkdir(parents=True)  # by the driver's command
    begin_note(killed, StepCount())
    StepNote(killed, first=0).write(47)
    save_state(killed.checkpoint_dir, 40)
    result = asker(tmp_path, PretendRanks()).ask(knee_plan(tmp_path, knee=50, name="other"))
    assert result.steps == StepCount(trained=60, reused=40, reached=TOTAL)


def test_in_a_home_that_was_moved_the_note_is_of_the_same_run(tmp_path: Path) -> None:
    plan = knee_plan(tmp_path, knee=50)
    plan.log_dir.parent.mkdir(parents=True)  # by the driver's command
    begin_note(plan, StepCount())
    StepNote(plan, first=0).write(47)
    before = f"/elsewhere/{plan.checkpoint_dir.name}"
    with counted_elsewhere(plan, StepCount(), checkpoint=before) as steps:
        assert steps == StepCount()
    assert read_note(plan) == StepCount(trained=47, reached=47)


def test_it_is_given_up_in_the_end(tmp_path: Path) -> None:
    ranks = PretendRanks(*(at(5, Died("out_of_memory")) for _ in range(3)))
    asking = asker(tmp_path, ranks)
    plan = knee_plan(tmp_path, knee=20)
    result = asking.ask(plan)
    assert isinstance(result.outcome, Failure)
    assert result.outcome.kind == "out_of_memory"
    assert result.steps == StepCount(trained=15, reached=5)
    again = asking.ask(plan, steps=lambda: result.steps)
    assert again.steps == StepCount(trained=115, reached=TOTAL)


def test_what_the_machine_does_uses_up_no_start_as_long_as_the_run_gets_on(tmp_path: Path) -> None:
    deaths = [at(step, Died()) for step in (15, 25, 35, 45, 55, 65, 75, 85, 95)]
    errors = [at(97, Died("exception"))] * (OWN_STARTS - 1)
    result = asker(tmp_path, PretendRanks(*deaths, *errors)).ask(knee_plan(tmp_path, knee=20))
    assert done(result).state == "complete"


def test_a_machine_that_always_ends_it_is_given_up(tmp_path: Path) -> None:
    ranks = PretendRanks(*[at(15, Died())] * 99)
    asking = asker(tmp_path, ranks)
    result = asking.ask(knee_plan(tmp_path, knee=20))
    assert isinstance(result.outcome, Failure)
    assert result.outcome.message == "died: signal, 6 times without getting any further"
    assert len(ranks.trained) == 15 + 5 * (MACHINE_STARTS - 1) + 5  # once more since step 10


def test_every_pause_is_longer_and_an_interrupt_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, wait = list[float](), trainer.wait
    monkeypatch.setattr(trainer, "FIRST_PAUSE", 1.0)
    monkeypatch.setattr(trainer, "wait", lambda seconds, on_life: waited.append(seconds))
    asker(tmp_path, PretendRanks(*[at(5, Died())] * 99)).ask(knee_plan(tmp_path, knee=20))
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0]

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait(60.0, interrupt)


def test_what_people_must_put_right_is_not_tried_again(tmp_path: Path) -> None:
    ranks = PretendRanks(at(1, Died("user_error")))
    result = asker(tmp_path, ranks).ask(knee_plan(tmp_path, knee=20))
    assert isinstance(result.outcome, Failure)
    assert len(ranks.trained) == 1


@pytest.mark.parametrize("step", [15, 45], ids=["on the trunk", "on the branch"])
def test_an_interrupt_is_counted_and_leaves_no_lock(tmp_path: Path, step: int) -> None:
    plan = knee_plan(tmp_path, knee=20)
    asking = asker(tmp_path, PretendRanks())
    asking.on_progress = at(step, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        asking.ask(plan)
    assert asking.counts == [StepCount(trained=step, reached=step)]

    after = asker(tmp_path, PretendRanks())
    again = after.ask(plan, steps=lambda: asking.counts[-1])
    assert again.steps == StepCount(trained=step + TOTAL - step // 10 * 10, reached=TOTAL)
    assert after.lines == []  # it had to wait for nobody


def test_two_who_want_the_same_run_train_it_once(tmp_path: Path) -> None:
    ranks = PretendRanks(seconds_per_step=0.002)
    both = [asker(tmp_path, ranks), asker(tmp_path, ranks)]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda who: who.ask(knee_plan(tmp_path, knee=50)), both))
    assert sorted(result.cached for result in results) == [False, True]
    assert len(ranks.trained) == TOTAL
    assert both[0].reports == both[1].reports


def test_who_waited_for_the_same_run_counts_on_from_what_the_other_counted(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()
    first = asker(tmp_path, PretendRanks(held_at(52, reached, go_on)))
    second = asker(tmp_path, PretendRanks())
    second.on_progress = lambda step: go_on.set()  # it has begun to wait
    plan = knee_plan(tmp_path, knee=50)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(first.ask, plan)
        assert reached.wait(SOON)
        result = second.ask(plan, steps=lambda: first.counts[-1] if first.counts else StepCount())
    assert result.cached
    assert result.steps == running.result().steps == StepCount(trained=TOTAL, reached=TOTAL)


def held_at(step: int, reached: threading.Event, go_on: threading.Event) -> What:
    """A run that stands still at a step until it may go on."""

    def hold(now: int) -> None:
        if now == step:
            reached.set()
            assert go_on.wait(SOON), "the other run did not get on meanwhile"

    return hold


def meet(home: Path, *, held: int, knee: int, then: int) -> tuple[RunResult, RunResult]:
    """A run that stands still at step ``held`` until one of knee ``then`` is through."""
    reached, go_on = threading.Event(), threading.Event()
    first = asker(home, PretendRanks(held_at(held, reached, go_on)))
    second = asker(home, PretendRanks())
    with ThreadPoolExecutor() as pool:
        running = pool.submit(first.ask, knee_plan(home, knee=knee))
        assert reached.wait(SOON)
        result = second.ask(knee_plan(home, knee=then))
        go_on.set()
        return running.result(SOON), result


def test_a_trunk_is_free_as_soon_as_its_run_leaves_it(tmp_path: Path) -> None:
    first, second = meet(tmp_path, held=52, knee=50, then=80)
    assert first.steps.trained == 100
    assert second.steps == StepCount(trained=50, reused=50, reached=TOTAL)


def test_a_trunk_checkpoint_is_enough_to_go_on_while_the_trunk_is_still_trained(
    tmp_path: Path,
) -> None:
    first, second = meet(tmp_path, held=61, knee=80, then=50)
    assert first.steps.trained == 100
    assert second.steps == StepCount(trained=50, reused=50, reached=TOTAL)


def test_a_run_beyond_its_knee_waits_for_no_trunk(tmp_path: Path) -> None:
    """Its trunk's state at the knee may have been dropped meanwhile."""
    plan = knee_plan(tmp_path, knee=50)
    save_state(plan.checkpoint_dir, 70)
    store = TrunkStore(tmp_path / "trunks", limit=PLENTY)
    with store.lock("digits-0.1"):
        assert asker(tmp_path, PretendRanks()).ask(plan).steps.trained == 30


def test_whoever_waits_says_so_and_can_be_interrupted(tmp_path: Path) -> None:
    store = TrunkStore(tmp_path / "trunks", limit=PLENTY)
    waiting = asker(tmp_path, PretendRanks())
    signs: list[int] = []

    def progress(step: int) -> None:
        signs.append(step)
        if len(signs) == 3:
            raise KeyboardInterrupt

    waiting.on_progress = progress
    with store.lock("digits-0.1"), pytest.raises(KeyboardInterrupt):
        waiting.ask(knee_plan(tmp_path, knee=50), steps=lambda: StepCount(trained=7, reached=7))
    assert signs == [7, 7, 7]
    assert len(waiting.lines) == 1
    assert "same trunk" in waiting.lines[0]


def test_a_run_leaves_the_store_within_its_limit(tmp_path: Path) -> None:
    asking = asker(tmp_path, PretendRanks(size=100), limit=350)
    asking.ask(knee_plan(tmp_path, knee=80))
    (entry,) = TrunkStore(tmp_path / "trunks", limit=350).entries()
    assert entry.size <= 350
    assert 80 in entry.sizes


def test_a_record_that_cannot_be_written_costs_a_line(tmp_path: Path) -> None:
    plan = knee_plan(tmp_path, knee=50)
    (plan.checkpoint_dir / RECORD).mkdir(parents=True)  # as good as a full disk
    asking = asker(tmp_path, PretendRanks())
    assert done(asking.ask(plan)).state == "complete"
    assert any("not recorded" in line for line in asking.lines)
    assert checkpoint_path(plan.checkpoint_dir, step=TOTAL).is_dir()


KNEES = (20, 40, 60, 80)
SEED_LRS = (0.1, 0.2)


def _drive(
    home: Path, together: Barrier, order: int, results: "multiprocessing.Queue[StepCount]"
) -> None:
    """A driver that trains every run of its order, one after the other."""
    asking = asker(home, PretendRanks(seconds_per_step=0.001))
    together.wait()
    total = StepCount()
    for seed_lr in SEED_LRS:
        for knee in KNEES[order::2]:
            total += asking.ask(knee_plan(home, knee=knee, seed_lr=seed_lr)).steps
    results.put(total)


def test_two_drivers_never_train_one_trunk_segment_twice(tmp_path: Path) -> None:
    """All steps of all branches, and of every trunk only the longest: DESIGN's formula."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    together = context.Barrier(2)
    drivers = [
        context.Process(target=_drive, args=(tmp_path, together, order, results))
        for order in (0, 1)
    ]
    for driver in drivers:
        driver.start()
    costs = [results.get(timeout=60) for _ in drivers]
    for driver in drivers:
        driver.join(SOON)
    formula = len(SEED_LRS) * (sum(TOTAL - knee for knee in KNEES) + max(KNEES))
    total = costs[0] + costs[1]
    assert total.trained == formula
    assert total.trained + total.reused == total.reached == len(SEED_LRS) * len(KNEES) * TOTAL
    assert all(cost.trained for cost in costs)
