"""Analyses as jobs of real ranks on digits, and as commands."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_model
from torch.nn import functional as F
from typer.testing import CliRunner, Result

from knee_tune.analysis.minimum import analyse
from knee_tune.cli.commands import app
from knee_tune.commands.home import Home, Places
from knee_tune.commands.look import look_at
from knee_tune.config.study import Analysis, Fisher, Sharpness
from knee_tune.errors import UserError
from knee_tune.plans.plan import ENTRY, AnalysePlan, LRRangePlan, Placement, Plan, TrainPlan
from knee_tune.schedules import Constant
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import (
    QUIET,
    Callbacks,
    Channel,
    Decision,
    GroupRunner,
    Outcome,
    Report,
)
from tests.command_line import complains
from tests.fake_runner import FakeRunner, ranks_here
from tests.integration.runs import done
from tests.integration.toy_task import ToyRecipe, ToyTask


class Quiet(Channel):
    """Nobody listens."""

    def report(self, report: Report) -> Decision:
        return Decision(stop=False)

    def progress(self, step: int) -> None: ...

    def line(self, text: str) -> None: ...


TABLE = """\
name: small
task: digits
replicates: 2
analyses: [{name: sharpness, iterations: 3, examples: 64}]
compare:
  table: Table 3
  section: "3.2"
  rows:
    - {schedule: constant, epochs: 1, seed_lr: 0.01, metrics: {}}
    - {schedule: constant, epochs: 1, seed_lr: 0.05, metrics: {}}
"""


def order(folder: Path, *, ranks: int = 1, task: str = "digits") -> dict[str, Any]:
    return {
        "task": task,
        "recipe": {},
        "seed": 1,
        "data_dir": folder,
        "placement": Placement(world_size=ranks),
        "log_dir": folder / "logs",
    }


def run(runner: GroupRunner, plan: Plan, told: list[int] | None = None) -> Outcome:
    return runner.run(plan, QUIET if told is None else Callbacks(on_progress=told.append))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of digits."""
    folder = tmp_path_factory.mktemp("trained")
    plan = TrainPlan(
        **order(folder),
        schedule=Constant(seed_lr=0.05, total_steps=100),
        steps_per_evaluation=100,
        checkpoint_dir=folder,
    )
    return Path(done(run(FakeRunner(), plan)).result["weights"])


@pytest.fixture(scope="module")
def forkserver() -> Iterator[ForkserverRunner]:
    runner = ForkserverRunner(ENTRY, preload=[ENTRY.partition(":")[0]])
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("analysis", "closeness"),
    [(Sharpness(iterations=20), 1e-3), (Fisher(), 0.1)],  # each rank draws labels of its own
    ids=lambda value: getattr(value, "name", ""),
)
def test_two_ranks_find_what_one_finds(
    analysis: Analysis,
    closeness: float,
    weights: Path,
    forkserver: ForkserverRunner,
    tmp_path: Path,
) -> None:
    alone, together = (
        done(
            run(runner, AnalysePlan(**order(tmp_path, ranks=n), weights=weights, analysis=analysis))
        ).result["metrics"]
        for runner, n in ((FakeRunner(), 1), (forkserver, 2))
    )
    assert together == pytest.approx(alone, rel=closeness)
    assert alone[analysis.name] > 0


def test_sharpness_starts_from_the_training_loss_on_the_seeds_noisy_labels(
    weights: Path, tmp_path: Path
) -> None:
    for seed in (1, 2):
        task = task_entry("digits").build({}, data_dir=tmp_path, seed=seed)
        model = task.build_model()
        load_model(model, weights)
        ((rows, labels),) = task.train_examples(Group(), limit=None)  # type: ignore[attr-defined]
        plan = AnalysePlan(
            **order(tmp_path) | {"seed": seed}, weights=weights, analysis=Sharpness(iterations=1)
        )
        found = done(run(FakeRunner(), plan)).result["metrics"]["loss"]
        assert found == pytest.approx(F.cross_entropy(model(rows), labels).item(), rel=1e-5)


def test_only_the_first_examples_of_a_sample(weights: Path, tmp_path: Path) -> None:
    task = task_entry("digits").build({}, data_dir=tmp_path, seed=1)
    ((rows, labels),) = task.train_examples(Group(), limit=10)  # type: ignore[attr-defined]
    ((_, all_labels),) = task.train_examples(Group(), limit=None)  # type: ignore[attr-defined]
    assert len(rows) == len(labels) == 10
    assert len(all_labels) == 800
    assert labels.equal(all_labels[:10])


def test_every_look_is_a_sign_of_life(weights: Path, tmp_path: Path) -> None:
    told: list[int] = []
    plan = AnalysePlan(**order(tmp_path), weights=weights, analysis=Sharpness(iterations=4))
    run(FakeRunner(), plan, told)
    assert told == [1, 2, 3, 4, 5]


def test_weights_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"nothing of the kind")
    plan = AnalysePlan(**order(tmp_path), weights=path, analysis=Sharpness(iterations=1))
    with pytest.raises(UserError, match="no weights of this task's model") as error:
        run(FakeRunner(), plan)
    assert str(path) in str(error.value)


def test_a_task_without_classes(tmp_path: Path) -> None:
    plan = AnalysePlan(**order(tmp_path, task="toy"), weights=tmp_path, analysis=Fisher())
    task = ToyTask(ToyRecipe(), data_dir=tmp_path, seed=1)
    with pytest.raises(UserError, match="task toy: fisher asks"):
        analyse(task, plan, task.build_model(), Group(), Quiet())


# LR range test


def test_the_range_test_trains_until_the_loss_explodes(tmp_path: Path) -> None:
    plan = LRRangePlan(**order(tmp_path), low=1e-3, high=1e4, steps=150)
    result = done(run(FakeRunner(), plan)).result
    lrs, losses = result["lrs"], result["losses"]

    assert len(lrs) == len(losses) < 150
    assert lrs[:2] == pytest.approx([1e-3, 1e-3 * 1e7 ** (1 / 149)])
    assert losses[0] == pytest.approx(math.log(10), abs=0.2)  # untrained
    assert min(losses) < losses[0] - 0.1
    assert losses[-1] > losses[0]
    assert all(map(math.isfinite, losses))


# Commands


def command(*arguments: str | Path, expect: int = 0) -> Result:
    with ranks_here():
        result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    if expect == 0 and result.exception:
        raise result.exception
    return result


def refused(*arguments: str | Path) -> str:
    """What a command says that refuses its input."""
    return complains(*arguments, said=())


def test_weights_by_their_file(weights: Path, tmp_path: Path) -> None:
    options = ("--weights", weights, "--task", "digits", "--json", "--home", tmp_path)
    found = json.loads(command("analyse", "sharpness", *options, "--iterations", "5").stdout)

    assert found["analysis"]["iterations"] == 5
    assert found["results"][0]["sharpness"] > 0
    assert found["results"][0]["loss"] > 0


def test_a_row_is_measured_as_its_study_measured_it(tmp_path: Path) -> None:
    table = tmp_path / "small.yaml"
    table.write_text(TABLE)
    home = ("--home", tmp_path / "home", "--tracking-uri", "none")
    command("run", "--study", table, "--no-register", *home)
    settings = ("--iterations", "3", "--examples", "64", "--json")
    found = json.loads(command("analyse", "sharpness", "--row", "2", *settings, *home).stdout)

    places = Places.of(Home(tmp_path / "home"), storage=None, tracking_uri="none")
    compared = look_at(places, None).compared
    kept = {run.seed: run.metrics["sharpness"] for run in compared if run.row == 1}
    assert {run["seed"]: run["sharpness"] for run in found["results"]} == kept
    moved = ("--home", (tmp_path / "home").rename(tmp_path / "moved"), "--tracking-uri", "none")
    again = json.loads(command("analyse", "sharpness", "--row", "2", *settings, *moved).stdout)
    assert [run["sharpness"] for run in again["results"]] == [
        run["sharpness"] for run in found["results"]
    ]
    home = moved
    assert "its rows are 1: " in refused("analyse", "fisher", *home)
    assert "--row 3: not there" in refused("analyse", "fisher", "--row", "3", *home)
    assert "--trial 0: study" in refused("analyse", "fisher", "--trial", "0", *home)


def test_the_range_test_writes_its_plot_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    plot = tmp_path / "plot.html"
    said = command(
        *("analyse", "lr-range", "--task", "digits", "--steps", "60", "--out", plot),
        *("--low", "1e-4", "--high", "1e3", "--home", tmp_path),
    ).stdout
    assert "suggested maximum" in plot.read_text()
    assert "--schedule one_cycle --seed-lr 0.0" in said
    assert "the loss exploded" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lr-range", "--task", "digits", "--low", "2", "--high", "1"), "--low 2 --high 1"),
        (("lr-range", "--task", "digits", "--out", "no/where.html"), "--out no/where.html"),
        (("sharpness", "--weights", "none.safetensors", "--task", "digits"), "no such file"),
        (("sharpness", "--weights", "none.safetensors"), "name it with --task"),
        (("fisher", "--task", "digits"), "--task: goes with --weights"),
        (("fisher", "study", "--weights", "x", "--task", "digits"), "leave STUDY out"),
        (("fisher", "nobody"), "there is no study"),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    message = refused("analyse", *arguments, "--home", home)
    assert said in message
    assert not home.exists()
