"""``knee-tune run --shared URL`` as people type it."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.s3 import S3Server
from knee_tune.records.study import StudyRecord
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, study_record
from tests.command_line import complains, knee_tune_here

STUDY = (
    *("run", "--task", "digits", "--preset", "quick", "--sampler", "grid", "--pruner", "none"),
    *("--set", "space.seed_lr={values: [0.05]}"),
    *("--set", "space.explore_fraction={values: [0.2, 0.4, 0.8]}"),
    *("--set", "recipe.epochs=5", "--set", "recipe.batch_size=100", "--no-fuse"),
    *("--study-name", "shared", "--tracking-uri", "none"),
)


def test_drivers_with_homes_of_their_own_come_to_the_values_of_one(
    tmp_path: Path, s3_server: S3Server
) -> None:
    knee_tune_here(*STUDY, "--home", tmp_path / "alone")
    both = (*STUDY, "--storage", f"sqlite:///{tmp_path}/both.db", "--shared", s3_server.url)
    for home, trials in (("one", "1"), ("other", "3")):
        knee_tune_here(*both, "--home", tmp_path / home, "--trials", trials)

    alone, together = study(tmp_path / "alone" / "optuna.db"), study(tmp_path / "both.db")
    assert values(together) == values(alone)
    assert together.steps == alone.steps
    assert [trial.steps.reused > 0 for trial in together.trials] == [False, True, True]


def study(database: Path) -> StudyRecord:
    return study_record(load_study(open_storage(f"sqlite:///{database}"), "shared"))


def values(study: StudyRecord) -> dict[tuple[Any, ...], Any]:
    """By point all that was measured, with every bit."""
    return {trial.point: (trial.value, trial.metrics, trial.curve) for trial in study.trials}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere://store", "Protocol not known: nowhere; name a folder, or a URL"),
        ("/none/store", "no such bucket or folder"),
        ("s3://key:secret@bucket", "a URL of a bucket has nothing but bucket and folder"),
        ("knee-runs", "is the home itself; name a folder of its own"),
    ],
)
def test_what_cannot_be_shared_is_said_before_anything_is_trained(
    url: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "secret" not in complains(*STUDY, "--shared", url, said=("--shared ", said))
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_is_not_there(tmp_path: Path, s3_server: S3Server) -> None:
    command = (*STUDY, "--home", tmp_path / "home", "--shared", "s3://missing/x")
    complains(*command, said=("--shared s3://missing/x: no such bucket or folder",))
    assert not (tmp_path / "home").exists()
