"""What people type wrong, and what they ask for help with: commands that start nothing."""

import re
from pathlib import Path

import pytest

from tests.command_line import QUICK, complains, knee_tune, knee_tune_here


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--task", "digit"), ("--task digit:", "did you mean 'digits'?", "breast-cancer")),
        ((*QUICK, "--nnodes", "2"), ("--nnodes", "--runner torchrun")),
        (("run", "--task", "digits", "--preset", "quik"), ("quik", "did you mean 'quick'")),
        (
            (*QUICK, "--set", "recipe.epoch=2"),
            ("--set recipe.epoch=2", "did you mean 'epochs'"),
        ),
        ((*QUICK, "--set", "recipe.epochs=0"), ("--set recipe.epochs=0", "greater than 0")),
        ((*QUICK, "--set", "recipe.epochs"), ("--set recipe.epochs", "expected FIELD=VALUE")),
        (("run", "--study", "digits-defualt"), ("digits-defualt", "'digits-default'")),
        (("run", "--study", "no/such.yaml"), ("no/such.yaml", "no such file")),
        ((*QUICK, "--sampler", "best"), ("sampler", "best", "gp")),
        ((*QUICK, "--storage", "postgresql+nosuch://u:secret@h/d"), ("--storage", "u:***@h")),
        ((*QUICK, "--storage", "optuna.db"), ("--storage optuna.db", "sqlite:///")),
        ((*QUICK, "--storage", "sqlite://"), ("--storage sqlite://", "in memory")),
        ((*QUICK, "--storage", "postgresql://me:secret@h:port/d"), ("postgresql://...", "not an")),
        ((*QUICK, "--tracking-uri", "ftp://x"), ("--tracking-uri ftp://x", "none")),
        ((*QUICK, "--tracking-uri", "http://["), ("--tracking-uri http://...", "not a URL")),
        ((*QUICK, "--tracking-uri", "http://me:secret@h:port"), ("http://...", "not a URL")),
        ((*QUICK, "--tracking-uri", "sqlite://"), ("--tracking-uri sqlite://", "in memory")),
        (("run",), ("--task", "--study")),
        (("status",), ("there is no study in it",)),
        (("best",), ("there is no study in it",)),
        (("replay", "mine"), ("there is no study in it",)),
        (("register", "mine"), ("there is no study in it",)),
        (("dashboard",), ("there is no study in it",)),
    ],
    ids=lambda value: "-".join(value)[-40:] if isinstance(value, tuple) else None,
)
def test_a_mistake_gets_one_line_and_makes_nothing(
    arguments: tuple[str, ...], said: tuple[str, ...], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert "secret" not in complains(*arguments, "--home", home, said=said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["line\nend", "\x1b[31mred", "left\u202eright", "\udcff"])
def test_a_home_that_no_terminal_can_show_is_refused(name: str, tmp_path: Path) -> None:
    complains(*QUICK, "--home", tmp_path / name, said=("--home", "cannot be shown"))
    assert not list(tmp_path.iterdir())


def test_exit_code_and_line_are_those_of_the_process(tmp_path: Path) -> None:
    done = knee_tune("run", "--task", "digit", "--home", tmp_path / "home", expect=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("knee-tune: --task digit: ")


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    complains(*QUICK, "--home", f"{tmp_path}/file/home", said=(f"--home {tmp_path}/file/home",))


COMMANDS = (
    "run",
    "status",
    "best",
    "register",
    "replay",
    "report",
    "dashboard",
    "audit",
    "budget",
    "reproduce",
    "analyse sharpness",
    "trunks list",
    "data prepare",
    "tasks",
    "doctor",
)


@pytest.mark.parametrize("command", ["", "analyse", "trunks", "data", *COMMANDS])
def test_every_command_explains_itself(command: str) -> None:
    said = knee_tune_here(*command.split(), "--help").stdout
    assert re.search(rf"Usage: .*{command} \[OPTIONS\]", said)
