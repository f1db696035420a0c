"""A home is found again after it was moved, and what killed commands left in it goes."""

import os
from pathlib import Path

import optuna
import pytest

from knee_tune.app.home import Home
from knee_tune.leftovers import scratch_folder
from knee_tune.runs.locks import file_lock
from knee_tune.tracking.store import _create_database
from knee_tune.tuning.artifacts import attach_to_study


def test_weights_are_where_they_were_noted_or_in_the_home_that_was_moved(tmp_path: Path) -> None:
    moved = Home(tmp_path / "moved")
    noted = tmp_path / "before" / "checkpoints" / "digits-1" / "weights.safetensors"
    assert moved.weights(str(noted)) == moved.checkpoints / "digits-1" / "weights.safetensors"
    noted.parent.mkdir(parents=True)
    noted.touch()
    assert moved.weights(str(noted)) == noted


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty one, with a folder of its own for temporary files."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.delenv("KNEE_TUNE_DATA", raising=False)
    return Home(tmp_path / "home")


LEFT = (
    *("trunks/a.draft", "reports/.s.html.draft", "budgets/b.draft", "logs/s/t/.x.draft"),
    *("outbox/a/b/1.draft", "outbox/a/b/1.ack-draft", "artifacts/optuna/1.2.draft"),
    *("checkpoints/c/.draft-1/state.pt", "checkpoints/c/x.draft", "trunks/t/x.draft"),
    "data/.set.1.filling/x",
)
"""What a command leaves that is killed while it writes."""


def put(home: Home, *names: str, old: bool) -> list[Path]:
    for path in (files := [home.root / name for name in names]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if old:
            os.utime(path, (0, 0))
    return files


def test_what_the_dead_left_goes_and_all_else_stays(home: Home, tmp_path: Path) -> None:
    put(home, *LEFT, old=True)
    kept = put(home, "checkpoints/c/weights.safetensors", "artifacts/optuna/1", old=True)
    kept += put(home, "artifacts/optuna/3.4.draft", "reports/.t.html.draft", old=False)
    kept += put(home, "checkpoints/d/y.draft", old=True)
    scratch = tmp_path / "tmp" / "knee-tune-scratch-1"
    with file_lock(home.checkpoints / "d.lock"), scratch_folder() as ours:
        (ours / "corpus").touch()
        scratch.mkdir()
        home.sweep()
        assert list(ours.iterdir())
        assert not scratch.exists()
    assert not ours.exists()
    files = {path for path in home.root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert files == set(kept)


def test_the_next_scratch_folder_takes_the_place_of_those_of_the_dead(
    tmp_path: Path, home: Home
) -> None:
    left = tmp_path / "tmp" / "knee-tune-scratch-1"
    left.mkdir()
    with scratch_folder():
        assert not left.exists()


def test_a_file_on_its_way_to_the_dashboard_is_nobodys_leftover(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is a link of an old file."""
    (weights,) = put(home, "weights", old=True)
    rename = Path.replace

    def swept_first(draft: Path, target: Path) -> Path:
        home.sweep()
        return rename(draft, target)

    monkeypatch.setattr(Path, "replace", swept_first)
    study = optuna.create_study()
    study.set_user_attr("key", "k")
    attach_to_study(study, weights, name="weights", store=home.dashboard_artifacts)
    assert len(list(home.dashboard_artifacts.iterdir())) == 1


def test_half_a_store_is_swept_by_who_makes_it_next(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("mlflow.db", ".mlflow.db.1.draft", ".mlflow.db.1.draft-journal")
    store, *left = put(home, *names, old=False)
    store.unlink()

    def migrated(url: str, artifacts: str) -> None:
        assert not any(path.exists() for path in left)
        raise InterruptedError

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", migrated)
    with pytest.raises(InterruptedError):
        _create_database(store)
