"""A branch is the uninterrupted run, bit for bit: any task, 1 to 3 ranks, any knee, any crash.

Budgets are counted in epochs, a knee in steps. A run that shares nothing says what is right; the
branches of one trunk must end in the same state, with the same curve, metrics and kept weights.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from knee_tune import jobs
from knee_tune.config.recipe import Recipe
from knee_tune.plans.plan import (
    Placement,
    TaskFacts,
    TaskOrder,
    TrainPlan,
    checkpoint_path,
    checkpoint_paths,
    checkpoint_step,
)
from knee_tune.plans.planner import knee_schedule, on_trunk, train_plan
from knee_tune.schedules import StepDecay
from knee_tune.tasks.registry import TASKS, task_entry
from knee_tune.training import loop
from knee_tune.training.checkpoint import WEIGHTS, load_checkpoint, run_fingerprint
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Callbacks, Channel, Decision, Failure, Outcome, Report
from tests.documents import put_documents
from tests.generated_images import put_cifar10
from tests.integration import odd_tasks
from tests.integration.runs import done, same

DIGITS: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 100,
    "model": {"hidden": [24], "dropout": 0.2},
    "keep": "best",
}
IWSLT: dict[str, Any] = {
    "epochs": 3,
    "data": "demo.de-en",
    "tokens_per_step": 6000,
    "valid_pairs": 40,
    "max_len_b": 10,
    "beam": 2,
    "keep": "best",
    "model": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "embed_dim": 16,
        "ffn_dim": 32,
        "heads": 2,
    },
}
CIFAR10: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 40,
    "validation": 40,
    "side": 8,
    "crop_padding": 1,
    "model": {"width": 8},
    "keep": "best",
}
GPT: dict[str, Any] = {
    "epochs": 3,
    "steps_per_epoch": 8,
    "warmup_steps": 0,
    "batch_size": 8,
    "valid_bytes": 400,
    "keep": "best",
    "model": {"layers": 2, "width": 16, "heads": 2, "context": 16, "dropout": 0.1},
}
PHASES = [{"share": 0.75, "warmup": 0}, {"share": 0.25, "warmup": 0.2, "lr_factor": 0.5}]
"""Of three epochs the first one ends after two and a quarter."""
BERT: dict[str, Any] = {
    "epochs": 24,
    "evaluate_every": 4,
    "data": "documents",
    "batch_size": 6,
    "accumulate": 2,
    "next_sentence": True,
    "phases": [
        {"share": 0.75, "length": 12},
        {"share": 0.25, "warmup": 0.2, "length": 24, "batch_size": 4},
    ],
    "model": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "positions": 24},
}
"""The first phase ends after 18 steps."""
SQUAD: dict[str, Any] = {
    "epochs": 3,
    "data": "squad-demo",
    "train_questions": 64,
    "valid_questions": 10,
    "evaluations_per_epoch": 1,
    "batch_size": 8,
    "max_length": 64,
    "max_question_length": 16,
    "stride": 24,
    "keep": "best",
    "model": {"size": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16}},
}
BASES = {
    "iwslt": (IWSLT, "fairseq"),
    "translation": (IWSLT | {"model": IWSLT["model"] | {"family": "torch"}}, "sacrebleu"),
    "cifar10": (CIFAR10, "torchvision"),
    "gpt": (GPT, "torch"),
    "bert": (BERT, "transformers"),
    "squad": (SQUAD, "transformers"),
}
"""Small recipes, and the library without which they are skipped; the other tasks are digits."""

OnReport = Callable[[Report], bool]
"""What the driver does with a report; True to stop."""


def never(_: Report) -> bool:
    return False


@dataclass(frozen=True)
class Ran:
    """One attempt as the driver saw it."""

    plan: TrainPlan
    outcome: Outcome
    reports: list[Report]
    lines: list[str]

    @property
    def first_step(self) -> int:
        return done(self.outcome).first_step

    def result(self) -> dict[str, Any]:
        """All that a complete run leaves behind."""
        assert done(self.outcome).state == "complete"
        newest = checkpoint_paths(self.plan.checkpoint_dir)[0]
        found = load_checkpoint(newest, run=run_fingerprint(self.plan))
        told = [{**report, "seconds": None} for report in json.loads(found.state["history"])]
        assert found.weights is None or same(
            load_file(found.weights), load_file(self.plan.checkpoint_dir / WEIGHTS)
        )
        return {
            "step": (found.step, done(self.outcome).step),
            "state": {**found.state, "history": told},
            "weights": load_file(self.plan.checkpoint_dir / WEIGHTS),
            "metrics": done(self.outcome).result["metrics"],
            "curve": [(report.step, report.total_steps, report.metrics) for report in self.reports],
        }


@dataclass
class Line(Channel):
    """A line to a driver in the same process."""

    on_report: OnReport
    reports: list[Report] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def report(self, report: Report) -> Decision:
        self.reports.append(Report.model_validate_json(report.model_dump_json()))
        return Decision(stop=self.on_report(report))

    def progress(self, step: int) -> None:
        pass

    def line(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A task with its recipe and world size, and a folder for its runs and trunks."""

    home: Path
    data: Path
    runner: Callable[[], ForkserverRunner]
    task: str
    ranks: int
    recipe: Recipe
    facts: TaskFacts

    @property
    def epoch(self) -> int:
        """Steps of an epoch; of a task whose budgets are steps, what stands for one."""
        return 8 if self.facts.steps_per_epoch == 1 else self.facts.steps_per_epoch

    def plan(
        self,
        folder: str,
        *,
        knee: int,
        kept: Sequence[int] | None = None,
        epochs: int = 3,
        seed_lr: float = 0.2,
    ) -> TrainPlan:
        """A run that decays after step ``knee``; with a trunk if these steps are ``kept``.

        Of a recipe with phases that is the first one's, and the others decay at the same fraction.
        """
        with suppress(FileExistsError):
            (self.home / "trunks").mkdir()  # as the driver does
        total = epochs * self.epoch
        recipe = self.recipe.with_budget(total // self.facts.steps_per_epoch)
        order = TaskOrder(
            task=self.task,
            recipe=recipe.model_dump(),
            seed=5,
            data_dir=self.data,
            placement=Placement(world_size=self.ranks),
            log_dir=self.home / f"logs-{folder}",
        )
        first = total * (recipe.phases[0].share if recipe.phases else 1)
        schedule = knee_schedule(recipe, self.facts, seed_lr=seed_lr, explore_fraction=knee / first)
        assert schedule.knee_step == knee
        here = self.home / folder
        plan = train_plan(order, recipe, self.facts, schedule=schedule, checkpoint_dir=here)
        if kept is None:
            return plan
        fractions = [step / first for step in kept]
        return on_trunk(
            plan, recipe, self.facts, trunks=self.home / "trunks", explore_fractions=fractions
        )

    def run(self, plan: TrainPlan, on_report: OnReport = never) -> Ran:
        """In this process for one rank; else in a real group."""
        line = Line(on_report)
        if self.ranks == 1 and self.task != "mortal":
            return Ran(plan, jobs.run_job(plan, Group(), line), line.reports, line.lines)
        callbacks = Callbacks(on_report=line.report, on_line=line.line, on_progress=line.progress)
        outcome = self.runner().run(plan, callbacks)
        return Ran(plan, outcome, line.reports, line.lines)

    def alone(self, *, knee: int, **changes: Any) -> dict[str, Any]:
        """What the uninterrupted run gives."""
        return self.run(self.plan(f"alone-{knee}-{changes}", knee=knee, **changes)).result()

    def trunk_steps(self) -> list[int]:
        """The steps at which the one trunk is kept."""
        (trunk,) = (self.home / "trunks").iterdir()
        return sorted(map(checkpoint_step, checkpoint_paths(trunk)))

    def trunk_checkpoint(self, step: int) -> Path:
        (trunk,) = (self.home / "trunks").iterdir()
        return checkpoint_path(trunk, step=step)


@pytest.fixture(scope="module")
def forkserver() -> Iterator[ForkserverRunner]:
    runner = ForkserverRunner(
        "tests.integration.odd_tasks:run_job",
        preload=[
            "tests.integration.odd_tasks",
            "sklearn.datasets",
            "knee_tune.tasks.translation.task",
            "knee_tune.tasks.translation.fairseq_bridge",
            "knee_tune.tasks.vision.cifar10",
            "knee_tune.tasks.language.task",
            "knee_tune.tasks.bert.pretraining",
            "knee_tune.tasks.bert.squad",
        ],
    )
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    put_cifar10(folder)
    put_documents(folder)
    return folder


@pytest.fixture(autouse=True)
def _as_in_a_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, entry in odd_tasks.ENTRIES.items():
        monkeypatch.setitem(TASKS, name, entry)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, data: Path, request: pytest.FixtureRequest) -> MakeBench:
    def make(task: str = "batchnorm", ranks: int = 1, **recipe: Any) -> Bench:
        base, library = BASES.get(task, (DIGITS, "torch"))
        pytest.importorskip(library, reason=f"{task} needs {library}")
        built = task_entry(task).build({**base, **recipe}, data_dir=data, seed=5)
        fingerprint, examples = built.describe()
        facts = TaskFacts(
            steps_per_epoch=built.steps_per_epoch(Group(world_size=ranks)),
            data_fingerprint=fingerprint,
            parameters=1,
            examples=examples,
        )
        return Bench(
            home=tmp_path,
            data=data,
            runner=lambda: request.getfixturevalue("forkserver"),
            task=task,
            ranks=ranks,
            recipe=built.recipe,
            facts=facts,
        )

    return make


# Branches of one trunk


def test_a_step_schedule_branches_from_the_same_trunk(bench: MakeBench) -> None:
    house = bench("digits")
    knee = house.plan("knee", knee=house.epoch, kept=[house.epoch])
    house.run(knee).result()
    step = StepDecay(
        seed_lr=knee.schedule.seed_lr,
        total_steps=knee.total_steps,
        boundaries=(house.epoch, 2 * house.epoch),
    )
    alone = house.plan("step-alone", knee=0).model_copy(update={"schedule": step})
    branch = on_trunk(
        alone.model_copy(update={"checkpoint_dir": house.home / "step"}),
        house.recipe,
        house.facts,
        trunks=house.home / "trunks",
    )
    ran = house.run(branch)
    assert ran.first_step == house.epoch
    assert same(ran.result(), house.run(alone).result())


@pytest.mark.parametrize("ranks", [1, 2], ids=["1 rank", "2 ranks"])
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param({"task": "digits"}, id="momentum"),
        pytest.param({"task": "digits", "accumulate": 2, "keep": "last"}, id="accumulation"),
        pytest.param({"optimizer": {"name": "radam"}, "clip_norm": 1.0}, id="BatchNorm, RAdam"),
        pytest.param({"task": "worsening", "accumulate": 2}, id="best before the knee"),
        pytest.param({"task": "apart"}, id="groups with decays of their own"),
        pytest.param({"task": "apart", "phases": PHASES}, id="phases"),
        pytest.param({"task": "iwslt"}, id="iwslt"),
        pytest.param({"task": "cifar10"}, id="cifar10"),
        pytest.param({"task": "gpt"}, id="gpt"),
        pytest.param({"task": "squad"}, id="squad"),
    ],
)
def test_branches_are_the_uninterrupted_runs(
    variant: dict[str, Any], ranks: int, bench: MakeBench
) -> None:
    check_branches(bench(ranks=ranks, **variant))


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(
            {"task": "iwslt", "cutoff": {"share": 0.2}, "accumulate": 2, "keep": "average-2"},
            id="Cutoff, averaged",
        ),
        pytest.param({"task": "bert"}, id="BERT, in phases"),
        pytest.param({"task": "translation", "cutoff": {"share": 0.2}}, id="without fairseq"),
        pytest.param({"task": "gpt", "optimizer": {"name": "muon"}}, id="Muon"),
    ],
)
def test_branches_of_two_ranks_are_the_uninterrupted_runs(
    variant: dict[str, Any], bench: MakeBench
) -> None:
    check_branches(bench(ranks=2, **variant))


def test_a_branch_that_dies_in_its_second_phase_goes_on_there(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left the trunk in the first one, which ends after 18 steps."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    ours = bench("bert")
    alone = ours.alone(knee=12)
    ours.run(ours.plan("trunk", knee=16, kept=[12, 16]))

    def dies(report: Report) -> bool:
        if report.step == 24:
            raise BrokenPipeError
        return False

    branch = ours.plan("branch", knee=12, kept=[12, 16])
    with pytest.raises(BrokenPipeError):
        ours.run(branch, dies)
    again = ours.run(branch)
    assert again.first_step == 20
    assert same(again.result(), alone)


def test_branches_are_the_uninterrupted_runs_with_more_ranks(bench: MakeBench) -> None:
    """What three ranks sum up depends on where their gradients lie in DDP's buckets."""
    check_branches(bench("digits", ranks=3))


def check_branches(ours: Bench) -> None:
    """The first one trains the trunk; others leave it at an epoch's end and in mid-epoch."""
    end, middle = 2 * ours.epoch, ours.epoch + ours.epoch // 2
    study = [middle, end]
    alone = {knee: ours.alone(knee=knee) for knee in study}

    trunk = ours.run(ours.plan("trunk", knee=end, kept=study))
    assert trunk.first_step == 0
    assert same(trunk.result(), alone[end])
    assert ours.trunk_steps() == study

    for knee in study:
        branch = ours.run(ours.plan(f"branch-{knee}", knee=knee, kept=study))
        assert branch.first_step == knee
        assert branch.lines == []
        assert same(branch.result(), alone[knee])
    assert ours.trunk_steps() == study


def test_a_trunk_grows(bench: MakeBench) -> None:
    """Every branch trains what is missing, and leaves its own knee behind."""
    ours = bench()
    study = [4, 12, 16]
    starts = {4: 0, 16: 4, 12: 12, 14: 12, 20: 16, 13: 12}

    for knee, start in starts.items():
        branch = ours.run(ours.plan(f"branch-{knee}", knee=knee, kept=study))
        assert branch.first_step == start
        assert same(branch.result(), ours.alone(knee=knee))
    assert ours.trunk_steps() == [4, 12, 13, 14, 16, 20]


@pytest.mark.parametrize("epochs", [2, 5])
def test_another_budget_has_the_same_trunk(epochs: int, bench: MakeBench) -> None:
    ours = bench()
    ours.run(ours.plan("first", knee=12, kept=[4, 12]))

    branch = ours.run(ours.plan("other", knee=15, kept=[5, 10], epochs=epochs))

    assert branch.first_step == 12
    assert same(branch.result(), ours.alone(knee=15, epochs=epochs))


def test_nothing_is_taken_over_where_a_budget_shifts_its_evaluations(bench: MakeBench) -> None:
    """With 7 steps an epoch, two epochs are measured after 12 and 14 steps, three after 12, 15."""
    ours = bench(batch_size=114, evaluations_per_epoch=2)
    ours.run(ours.plan("longer", knee=14, kept=[13, 14], epochs=3))
    assert ours.trunk_steps() == [13, 14]

    branch = ours.run(ours.plan("shorter", knee=14, kept=[13, 14], epochs=2))

    assert [report.step for report in branch.reports] == [3, 6, 9, 12, 14]
    assert branch.first_step == 13
    assert same(branch.result(), ours.alone(knee=14, epochs=2))


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 50}, {"model": {"hidden": [23]}}, {"ranks": 2}, {"label_noise": 0.1}],
    ids=str,
)
def test_another_task_has_another_trunk(change: dict[str, Any], bench: MakeBench) -> None:
    ours, other = bench(task="digits"), bench(task="digits", **change)
    ours.run(ours.plan("first", knee=12, kept=[12]))

    assert other.run(other.plan("other", knee=12, kept=[12])).first_step == 0


# Crashes, stops, losses


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_group_goes_on_from_the_trunk(ranks: int, bench: MakeBench) -> None:
    ours = bench("mortal", ranks)
    alone = ours.alone(knee=16)
    for step in random.Random(ranks).sample(range(1, 25), 3):
        trunks, plan = ours.home / "trunks", ours.plan(f"killed-{step}", knee=16, kept=[4, 12, 16])
        if trunks.exists():
            trunks.rename(ours.home / f"trunks-before-{step}")
        trunks.mkdir()
        (ours.data / odd_tasks.KILL_AT).write_text(str(step))

        killed = ours.run(plan)
        assert isinstance(killed.outcome, Failure)
        assert killed.outcome.kind == "signal"
        again = ours.run(plan)

        passed = [each for each in (0, 4, 12, 16) if each < step]
        # The batch of the next step is taken only after a step's state was written, but what one
        # rank takes says nothing about the files of another.
        assert again.first_step in passed[-2:]
        assert same(again.result(), alone)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stop_in_what_was_measured_before(ranks: int, bench: MakeBench) -> None:
    """The driver hears of the trunk's evaluations as if the branch had trained it."""
    ours = bench(ranks=ranks)
    ours.run(ours.plan("trunk", knee=18, kept=[18]))

    stopped = ours.run(ours.plan("branch", knee=18, kept=[18]), lambda report: report.step == 8)

    assert [report.step for report in stopped.reports] == [8]
    assert done(stopped.outcome).model_dump(include={"state", "step", "first_step"}) == {
        "state": "stopped",
        "step": 8,
        "first_step": 8,
    }


def test_a_run_that_is_stopped_at_a_trunk_checkpoint_leaves_it(bench: MakeBench) -> None:
    ours = bench()
    ours.run(ours.plan("stopped", knee=16, kept=[8, 16]), lambda report: report.step == 8)

    assert ours.trunk_steps() == [8]
    again = ours.run(ours.plan("again", knee=16, kept=[8, 16]))
    assert again.first_step == 8
    assert same(again.result(), ours.alone(knee=16))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_trunk_that_diverges_is_trained_up_to_there_once(ranks: int, bench: MakeBench) -> None:
    """Its loss is lost at step 14, which is noticed at step 16. Branches may leave before."""
    ours = bench("breaking", ranks)
    study = [12, 15, 20]
    alone = ours.run(ours.plan("alone", knee=20))
    assert (done(alone.outcome).state, done(alone.outcome).step) == ("diverged", 16)

    first = ours.run(ours.plan("first", knee=20, kept=study))
    assert first.outcome == alone.outcome
    assert ours.trunk_steps() == [12, 16]  # a lost state is nobody's start

    for knee, start in {20: 16, 22: 16, 15: 12, 12: 12}.items():
        branch = ours.run(ours.plan(f"branch-{knee}", knee=knee, kept=study))
        expected = done(alone.outcome).model_copy(update={"first_step": start})
        assert branch.outcome == expected
        assert [report.metrics for report in branch.reports] == [
            report.metrics for report in alone.reports
        ]


def test_a_wild_trunk_leaves_nothing_but_its_end(bench: MakeBench) -> None:
    ours = bench("digits")

    first, second = (
        ours.run(ours.plan(name, knee=16, kept=[1, 4, 6], seed_lr=1e20))
        for name in ("first", "second")
    )

    assert ours.trunk_steps() == [8]
    assert done(first.outcome).steps_trained == 8
    assert done(second.outcome).steps_trained == 0
    assert done(second.outcome).reason == done(first.outcome).reason != ""


# Trunk checkpoints that are no good


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(checkpoint: Path) -> None:
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / WEIGHTS).write_bytes(content)


def write_half(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def claim_another_trunk(checkpoint: Path) -> None:
    manifest = checkpoint / "manifest.json"
    (trunk,) = (checkpoint.parents[1]).iterdir()
    manifest.write_text(manifest.read_text().replace(trunk.name, "digits-0123456789abcdef"))


@pytest.mark.parametrize(
    ("damage", "ranks"),
    [(truncate, 1), (truncate, 2), (flip_a_bit, 1), (write_half, 1), (claim_another_trunk, 1)],
)
def test_a_damaged_trunk_checkpoint_costs_time_only(
    damage: Callable[[Path], None], ranks: int, bench: MakeBench
) -> None:
    ours = bench(ranks=ranks)
    study = [4, 10, 16]
    ours.run(ours.plan("trunk", knee=16, kept=study))
    damage(ours.trunk_checkpoint(16))

    branch = ours.run(ours.plan("branch", knee=16, kept=study))

    (line,) = branch.lines
    assert line.startswith(
        f"{ours.trunk_checkpoint(16)}: no good, starting from an earlier checkpoint: "
    )
    assert branch.first_step == 10
    assert same(branch.result(), ours.alone(knee=16))
    assert ours.run(ours.plan("next", knee=16, kept=study)).first_step == 16  # it is sound again


def test_without_a_sound_trunk_checkpoint_a_run_starts_from_scratch(bench: MakeBench) -> None:
    ours = bench()
    ours.run(ours.plan("trunk", knee=16, kept=[4, 16]))
    for step in (4, 16):
        truncate(ours.trunk_checkpoint(step))

    branch = ours.run(ours.plan("branch", knee=16, kept=[4, 16]))

    assert (branch.first_step, len(branch.lines)) == (0, 2)
    assert same(branch.result(), ours.alone(knee=16))


def test_the_further_one_of_own_and_trunk_checkpoint_is_taken(bench: MakeBench) -> None:
    ours = bench()
    study = [4, 12]
    stop: OnReport = lambda report: report.step == 8  # noqa: E731
    ours.run(ours.plan("checkpoint", knee=12, kept=[4]), stop)
    ours.run(ours.plan("beside", knee=12, kept=study))

    assert ours.run(ours.plan("checkpoint", knee=10, kept=study)).first_step == 4
    ours.run(ours.plan("own", knee=12, kept=study), lambda report: report.step == 16)
    branch = ours.run(ours.plan("own", knee=12, kept=study))
    assert branch.first_step == 16
    assert same(branch.result(), ours.alone(knee=12))


def test_a_trunk_that_cannot_be_written_costs_one_word(bench: MakeBench) -> None:
    ours = bench()
    plan = ours.plan("run", knee=16, kept=[4, 12, 16])
    (ours.home / "trunks").rmdir()

    ran = ours.run(plan)

    (line,) = ran.lines
    assert "step-00000004: not saved, other runs train it again: " in line
    assert same(ran.result(), ours.alone(knee=16))


def test_two_at_once_do_no_harm(bench: MakeBench) -> None:
    """A driver's lock keeps them apart; without it they only do the same work twice."""
    ours = bench("mortal")  # in groups of its own
    alone = ours.alone(knee=16)
    study = list(range(1, 17))
    plans = [ours.plan(f"run-{index}", knee=16, kept=study) for index in range(2)]

    with ThreadPoolExecutor() as pool:
        both = list(pool.map(ours.run, plans))

    assert all(same(ran.result(), alone) and ran.lines == [] for ran in both)
    assert ours.trunk_steps() == study
    assert ours.run(ours.plan("branch", knee=16, kept=study)).first_step == 16
    assert [path for path in ours.trunk_checkpoint(1).parent.iterdir() if path.name[0] == "."] == []
