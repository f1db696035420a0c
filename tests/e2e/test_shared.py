"""``knee-tune run --shared URL`` as people type it."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from benchmarks.s3 import S3Server
from tests.command_line import complains, knee_tune_here

STUDY = (
    *("run", "--task", "digits", "--preset", "quick", "--sampler", "grid", "--pruner", "none"),
    *("--set", "space.seed_lr={values: [0.02, 0.05]}"),
    *("--set", "space.explore_fraction={values: [0.2, 0.4, 0.8]}"),
    *("--set", "recipe.epochs=5", "--set", "recipe.batch_size=100", "--no-fuse"),
    *("--study-name", "shared", "--tracking-uri", "none"),
)


def test_drivers_with_homes_of_their_own_come_to_the_values_of_one(
    tmp_path: Path, s3_server: S3Server
) -> None:
    knee_tune_here(*STUDY, "--home", tmp_path / "alone")
    alone = values(tmp_path / "alone" / "optuna.db")

    storage = tmp_path / "both.db"
    both = (*STUDY, "--storage", f"sqlite:///{storage}", "--shared", f"{s3_server.url}/study")
    knee_tune_here(*both, "--home", tmp_path / "one", "--trials", "2")
    knee_tune_here(*both, "--home", tmp_path / "other")
    assert values(storage) == alone
    assert steps(tmp_path / "other", storage) == steps(tmp_path / "alone")

    # Nothing is left to train for whoever has the store alone.
    again = knee_tune_here(
        *STUDY, "--home", tmp_path / "third", "--shared", f"{s3_server.url}/study"
    )
    assert values(tmp_path / "third" / "optuna.db") == alone
    assert steps(tmp_path / "third")["trained"] == 0
    assert "reused" in again.stdout
    listed = knee_tune_here("trunks", "list", "--shared", f"{s3_server.url}/study").stdout
    assert "2 trunks" in listed


def values(database: Path) -> dict[tuple[Any, ...], Any]:
    """By point all that was measured, with every bit."""
    study = optuna.load_study(study_name="shared", storage=f"sqlite:///{database}")
    return {
        tuple(trial.params.values()): (trial.value, trial.intermediate_values)
        for trial in study.trials
    }


def steps(home: Path, storage: Path | None = None) -> dict[str, int]:
    """How many were trained, and saved."""
    where = () if storage is None else ("--storage", f"sqlite:///{storage}")
    said = knee_tune_here("status", "shared", "--home", home, "--json", *where).stdout
    return dict(json.loads(said)["steps"])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere://store", ("--shared nowhere://store: Protocol not known: nowhere",)),
        ("{tmp}/none/store", ("--shared {tmp}/none/store: no such bucket or folder",)),
        (
            "s3://key:secret@bucket",
            ("--shared s3://key@bucket: a URL of a bucket has nothing but",),
        ),
        ("{tmp}/home", ("--shared {tmp}/home: is the home itself",)),
    ],
)
def test_what_cannot_be_shared_is_said_before_anything_is_trained(
    url: str, said: tuple[str, ...], tmp_path: Path
) -> None:
    there = (text.replace("{tmp}", str(tmp_path)) for text in said)
    line = complains(
        *(*STUDY, "--home", tmp_path / "home", "--shared", url.replace("{tmp}", str(tmp_path))),
        said=tuple(there),
    )
    assert "secret" not in line


def test_a_bucket_that_is_not_there(tmp_path: Path, s3_server: S3Server) -> None:
    command = (*STUDY, "--home", tmp_path / "home", "--shared", "s3://missing/x")
    complains(*command, said=("--shared s3://missing/x: no such bucket or folder",))
    assert not (tmp_path / "home").exists()
