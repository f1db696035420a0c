"""``knee-tune horizons`` from the command line: studies that share trunks, and one page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knee_tune import save_trunk
from knee_tune.commands.home import Home, Places
from knee_tune.commands.look import look_at
from knee_tune.commands.opened import resolve_asked
from knee_tune.plans.plan import Plan, TrainPlan
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.protocol import Channel, Done, Failure, Outcome
from tests.command_line import complains, drive_here, knee_tune, knee_tune_here
from tests.fake_runner import FakeRunner, run_here

ASKED = (
    *("horizons", "--task", "digits", "--preset", "quick", "--budgets", "2,4", "--trials", "3"),
    *("--set", "recipe.batch_size=64", "--tracking-uri", "none", "--json"),
)
SHORTER = 24
"""Steps of :data:`ASKED`'s shorter budget."""


def test_longer_horizons_go_on_from_the_trunks_of_shorter_ones(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = json.loads(knee_tune_here(*ASKED, "--home", home).stdout)
    shorter, longer = said["horizons"]
    assert 2 * shorter["total_steps"] == longer["total_steps"]
    assert longer["trained"] < longer["independent"]
    assert said["exponent"] is None
    assert Path(said["report"]).is_file()

    again = json.loads(knee_tune_here(*ASKED, "--home", home).stdout)
    assert again == said  # nothing was trained anew

    status = knee_tune_here("status", "horizons-digits-quick-4ep", "--home", home).stdout
    assert "3 complete" in status


def test_budgets_are_named() -> None:
    complains("horizons", "--task", "digits", "--budgets", "4,2", said=("must ascend",))
    complains("horizons", "--task", "digits", "--budgets", "10.5,20", said=("--budgets 10.5,20",))
    complains("horizons", "--budgets", "2,4", said=("--task: missing",))


def test_steps_of_a_script_share_trunks_too(repository: Path, tmp_path: Path) -> None:
    script, home = repository / "examples" / "pytorch" / "train.py", tmp_path / "home"
    asked = ("--budgets", "40,80", "--trials", "2", "--seed-lr", "0.02,0.05")
    places = ("--home", home, "--tracking-uri", "none", "--json", "--", "--width", "8")
    said = json.loads(knee_tune("horizons", script, *asked, *places).stdout)
    shorter, longer = said["horizons"]
    assert [each["study"] for each in said["horizons"]] == [
        "horizons-train-40steps",
        "horizons-train-80steps",
    ]
    assert shorter["trained"] == shorter["independent"]
    assert longer["trained"] < longer["independent"], "measured alike, it went on from a trunk"


Instead = Callable[[TrainPlan], Outcome | None]


class Ranks(FakeRunner):
    """Ranks that train as usual, unless ``instead`` says how a run ends."""

    def __init__(self, instead: Instead) -> None:
        super().__init__()
        self._instead = instead

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        if isinstance(plan, TrainPlan):
            return self._instead(plan) or run_here(plan, channel)
        return run_here(plan, channel)


Drive = Callable[..., Any]


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Drive:
    """``horizons`` in one home, with ranks that do as they are told."""

    def driven(instead: Instead, *more: str, expect: int) -> Any:
        monkeypatch.setattr(
            "knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: Ranks(instead)
        )
        return drive_here(
            *ASKED, "--trials", "2", *more, "--home", tmp_path / "home", expect=expect
        )

    return driven


def usual(plan: TrainPlan) -> None:
    """Every run trains."""


def test_a_budget_without_a_complete_trial_is_named_and_the_others_are_shown(drive: Drive) -> None:
    def short_ones_diverge(plan: TrainPlan) -> Outcome | None:
        lost = plan.total_steps == SHORTER
        return Done(state="diverged", step=1, reason="non-finite loss") if lost else None

    done = drive(short_ones_diverge, expect=2)
    said = json.loads(done.stdout)
    assert [each["budget"] for each in said["horizons"]] == ["4ep"]
    assert Path(said["report"]).is_file()
    line = done.stderr.splitlines()[-1]
    assert line.startswith("knee-tune: no trial is complete at 2ep (study horizons-digits-quick-2e")
    assert "search lower seed LRs with --set space.seed_lr.low=LR" in line


def test_what_failed_is_said_last_and_the_same_command_goes_on(drive: Drive) -> None:
    def others_than_the_default_fail(plan: TrainPlan) -> Outcome | None:
        if plan.total_steps > SHORTER or plan.schedule.seed_lr == plan.recipe["seed_lr"]:
            return None
        return Failure(kind="exception", rank=0, message="no luck")

    def longer_ones_are_interrupted(plan: TrainPlan) -> None:
        if plan.total_steps > SHORTER:
            raise KeyboardInterrupt

    done = drive(others_than_the_default_fail, expect=1)
    assert len(json.loads(done.stdout)["horizons"]) == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("knee-tune: study horizons-digits-quick-2ep: ")
    assert last.endswith("failed; the same command tries again")

    drive(longer_ones_are_interrupted, "--trials", "3", expect=130)  # once the shorter are complete
    said = json.loads(drive(usual, "--trials", "3", expect=0).stdout)
    assert [each["independent"] for each in said["horizons"]] == [3 * SHORTER, 6 * SHORTER]


def test_a_trunk_from_a_file_is_decayed_at_every_horizon(tmp_path: Path) -> None:
    """Its owner asks which decay, and how long a run, is best from there."""
    file, home = tmp_path / "stable.safetensors", tmp_path / "home"
    spec = resolve_asked(task="digits")
    task = task_entry("digits").build(spec.recipe, data_dir=tmp_path, seed=1)
    save_trunk(file, task.build_model())
    asked = (
        *("horizons", "--task", "digits", "--preset", "quick", "--seed-lr", "0.1"),
        *("--budgets", "20steps,40steps", "--tracking-uri", "none", "--home", home),
    )
    said = json.loads(knee_tune_here(*asked, "--trunk", f"{file}@15", "--json").stdout)
    shorter, longer = said["horizons"]
    tried = look_at(Places.of(Home(home), storage=None, tracking_uri="none"), shorter["study"])
    assert {trial.explore_fraction for trial in tried.trials} == {0.75, 0.8}
    assert (shorter["trained"], shorter["independent"]) == (10, 40)  # 5 steps each, from 15
    assert (shorter["seed_lr"], longer["seed_lr"]) == (0.1, 0.1)
    page = Path(said["report"]).read_text()
    assert "Every run begins at step 15 of stable.safetensors" in page

    complains(*asked, "--trunk", f"{file}@30", said=("before the budget (20 steps) does",))
    complains(
        *asked[:5], *asked[7:], "--trunk", f"{file}@15", said=("name that one with --seed-lr",)
    )
    file.write_bytes(b"something else")
    complains(*asked, "--trunk", f"{file}@15", said=("no safetensors file",))
