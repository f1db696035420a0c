"""A home is found again after it was moved, and missed when it is gone."""

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from knee_tune.app.home import Home
from knee_tune.errors import HomeGoneError, UserError


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
