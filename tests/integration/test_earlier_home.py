"""A home that an earlier version wrote opens, goes on and reports (see ``fixtures/README.md``)."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.command_line import QUICK, knee_tune_here

HOMES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That home, to be looked at."""
    folder = tmp_path_factory.mktemp("homes")
    with tarfile.open(HOMES / "home-2026-11.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "home-2026-11"


@pytest.fixture
def home(kept: Path, tmp_path: Path) -> Path:
    """A copy, to be worked in."""
    return shutil.copytree(kept, tmp_path / "home")


@pytest.mark.parametrize(
    ("study", "best"),
    [
        ("search", "valid_accuracy 74.5 (over 2 fresh seeds, trial 0 of search)"),
        ("fused", "seed LR 0.05, explore 50%: valid_accuracy 41.5"),
        ("grid", "of grid)"),
        ("killed", "seed LR 0.05, explore 50%: valid_accuracy 90.67 (trial 0 of killed)"),
        ("pruned", "of pruned)"),
        ("translation", "(trial 0 of translation)"),
    ],
)
def test_what_was_found_is_shown(kept: Path, study: str, best: str) -> None:
    assert f"{study}: " in knee_tune_here("status", study, "--home", kept).stdout
    assert best in knee_tune_here("best", study, "--home", kept).stdout


def test_trunks_and_the_comparison_are_listed(kept: Path) -> None:
    assert "5 trunks" in knee_tune_here("trunks", "list", "--home", kept).stdout
    assert "cosine" in knee_tune_here("status", "table1-digits-scale0.1", "--home", kept).stdout


def test_a_search_goes_on_without_a_record_of_before_and_is_reported(home: Path) -> None:
    again = (*QUICK, "--trials", "7", "--study-name", "search", "--no-register", "--home", home)
    said = knee_tune_here(*again, "--tracking-uri", "none").stdout
    assert "trials 0-5 were trained by other code or libraries" in said
    assert "damaged" not in said

    knee_tune_here("report", "search", "--format", "json", "--home", home)
    report = json.loads((home / "reports" / "search.json").read_text())
    codes = {name: what for name, what in report["environment"].items() if "code" in name}
    assert codes.pop("code not noted") == "trials 0-5"
    assert [*codes.values()] == ["trial 6"]
    assert report["counts"]["complete"] == 7
    assert report["steps"]["trained"] == 1680 + 300
    assert report["steps"]["recorded"] == 0


def test_the_trial_of_a_killed_driver_is_trained_anew(home: Path) -> None:
    """It was running when its driver died, with reports and a checkpoint."""
    command = ("run", "--task", "digits", "--trials", "2", "--study-name", "killed", "--nproc", "2")
    settings = ("--set", "recipe.batch_size=16", "--set", "recipe.epochs=20")
    done = knee_tune_here(
        *(*command, "--sampler", "random", *settings),
        *("--no-register", "--tracking-uri", "none", "--home", home),
    )
    assert "trial 0 was trained by other code or libraries" in done.stdout
    assert "2 complete, 0 pruned, 0 failed, 0 running" in done.stdout


def test_its_winner_is_replayed_and_registered(home: Path) -> None:
    replayed = knee_tune_here("replay", "search", "--home", home).stdout
    assert "trial 0 was trained by other code or libraries" in replayed
    assert "trial 0 replayed" in replayed
    registered = knee_tune_here("register", "search", "--home", home).stdout
    assert "knee-tune-digits" in registered
