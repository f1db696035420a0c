"""A home is found again after it was moved, missed when it is gone, and swept."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest

from knee_tune.commands.home import Home
from knee_tune.errors import HomeGoneError, UserError
from knee_tune.leftovers import OF_TORCHRUN, scratch, scratch_folder
from knee_tune.runs.locks import file_lock
from knee_tune.study.dashboard import attach_to_study
from knee_tune.tracking.store import _create_database


def logs_of(home: Home) -> Path:
    return home.logs("mine") / "describe"


def test_weights_are_where_they_were_noted_or_in_the_home_that_was_moved(tmp_path: Path) -> None:
    moved = Home(tmp_path / "moved")
    noted = tmp_path / "before" / "checkpoints" / "digits-1" / "weights.safetensors"
    assert moved.weights(str(noted)) == moved.checkpoints / "digits-1" / "weights.safetensors"
    noted.parent.mkdir(parents=True)
    noted.touch()
    assert moved.weights(str(noted)) == noted


def replace(root: Path) -> None:
    shutil.rmtree(root)
    Home(root).create()
    Home(root).checkpoints.mkdir()


@pytest.mark.parametrize(
    "lose",
    [
        shutil.rmtree,
        replace,
        lambda root: root.rename(root.with_name("elsewhere")),
        lambda root: (root / "checkpoints").rmdir(),  # deleting it is under way
    ],
    ids=["deleted", "replaced", "moved", "deleted in part"],
)
def test_a_home_that_goes_away_ends_the_command_whatever_else_came_of_it(
    lose: Callable[[Path], object], tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")

    def command() -> None:
        with home.held(logs=logs_of(home)) as held:
            held.raise_if_gone()
            lose(home.root)
            assert held.gone
            raise FileNotFoundError(home.checkpoints)

    with pytest.raises(HomeGoneError, match=r"home: it was deleted or moved"):
        command()


def test_a_home_that_goes_away_unseen_is_missed_at_the_end(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(HomeGoneError), home.held(logs=logs_of(home)):
        shutil.rmtree(home.root)
    assert not home.root.exists()


def refused(
    home: Home, *, said: str = "no data", meanwhile: Callable[[], object] = lambda: None
) -> None:
    """A command that looks at its task and finds a mistake."""

    def command() -> None:
        with home.held(logs=logs_of(home)):
            logs_of(home).mkdir(exist_ok=True)
            (logs_of(home) / "rank-0.log").touch()
            meanwhile()
            raise UserError(said)

    with pytest.raises(UserError, match=re.escape(said)):
        command()


def test_a_mistake_takes_the_home_back_that_was_made_for_it(tmp_path: Path) -> None:
    refused(Home(tmp_path / "new" / "home"))
    assert not list(tmp_path.iterdir())


def test_a_mistake_leaves_what_was_there_or_is_anothers(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    refused(Home(tmp_path / "before"))
    assert (tmp_path / "before").is_dir()

    shared = tmp_path / "shared"
    refused(Home(shared), meanwhile=(shared / "optuna.db").touch)
    assert (shared / "optuna.db").exists()


def test_another_command_in_a_new_home_keeps_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with ExitStack() as other:
        refused(home, meanwhile=lambda: other.enter_context(home.held(logs=logs_of(home))))
        assert home.checkpoints.is_dir()


def test_a_log_that_people_are_sent_to_stays(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    refused(home, said=f"task mine: rank 0: ValueError: no; its log: {logs_of(home)}")
    assert (logs_of(home) / "rank-0.log").is_file()


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
    *("checkpoints/c/.step-1.2.draft/state.pt", "outbox/a/b/.1.ack.2.draft"),
    *("trunks/.store.json.1.draft", "budgets/.b.json.1.draft"),
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


def test_what_a_killed_launch_left_is_swept_and_what_one_works_in_is_not(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "study" / "trial-0000"
    left = logs / f"{OF_TORCHRUN}of-the-dead"
    left.mkdir(parents=True)
    with scratch(OF_TORCHRUN, within=logs) as (folder, _):
        assert not left.exists(), "the next launch there sweeps as well"
        left.mkdir()
        Home(tmp_path).sweep()
        assert not left.exists()
        assert folder.is_dir()
    assert list(logs.iterdir()) == []
