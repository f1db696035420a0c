"""What people type wrong, and what they ask for help with: commands that start nothing."""

import re
from pathlib import Path

import pytest

from tests.command_line import QUICK, complains, knee_tune, knee_tune_here

SPANNING = ("--runner", "torchrun", "--nnodes", "2", "--launcher", "srun torchrun")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--task", "digit"), ("--task digit:", "did you mean 'digits'?", "breast-cancer")),
        ((*QUICK, "--nnodes", "2"), ("--nnodes", "--runner torchrun")),
        ((*QUICK, "--address", "127.0.0.1"), ("--address 127.0.0.1", "--nnodes")),
        (
            (*QUICK, *SPANNING, "--address", "192.0.2.1"),
            ("--address 192.0.2.1", "no address of this machine"),
        ),
        ((*QUICK, "--strategy", "spread"), ("--strategy", "--runner ray")),
        (
            (*QUICK, "--runner", "ray", "--ray-address", "127.0.0.1:1"),
            ("--ray-address 127.0.0.1:1", "nobody answers there"),
        ),
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
        ((*QUICK, "--set", "a=" + "[" * 5000), ("--set a=[[[", "20 levels deep")),
        (
            (*QUICK, "--set", "space.explore_fraction.step=1e-7"),
            ("--set", "more than 10,000 points"),
        ),
        (
            (*QUICK, "--set", "space.explore_fraction.values=[0.3,0.30000000000000004]"),
            ("0.3 and 0.30000000000000004 are the same point",),
        ),
        ((*QUICK, "--set", "recipe.epochs=1000000000000"), ("recipe.epochs", "1000000")),
        ((*QUICK, "--stall-timeout", "1e400"), ("'--stall-timeout'", "less than or equal to")),
        ((*QUICK, "--timeout", "nan"), ("'--timeout'", "must be")),
        ((*QUICK, "--launcher", '"'), ('--launcher ": no closing quotation',)),
        (
            (*QUICK, "--runner", "torchrun", "--launcher", "nosuch torchrun"),
            ("--launcher 'nosuch torchrun'", "no program 'nosuch'"),
        ),
        ((*QUICK, "--nproc", "1000000"), ("--nproc 1000000", "1,000,000 processes")),
        ((*QUICK, "--concurrency", "100000"), ("--concurrency 100000", "100,000 processes")),
        (("trunks", "clear", "--older-than", "1e12"), ("'--older-than'", "36500")),
        (("run", "--nosuch"), ("No such option: --nosuch", "run --help")),
        (("nosuch",), ("No such command 'nosuch'", "--help")),
        (("report", "--out", "x" * 300), ("'--out'", "File name too long")),
        (("status",), ("there is no study in it",)),
        (("best",), ("there is no study in it",)),
        (("best", "--as", "hf", "--json"), ("--as:", "--json", "give one of them")),
        (("best", "--as", "keras"), ("'--as'", "'keras' is not one of 'torch', 'hf'")),
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--task", "iwslt", "--preset", "paper"), "knee-tune data prepare iwslt"),
        ((*QUICK, "--device", "cuda"), "--device cpu"),
        ((*QUICK, "--set", "recipe.warmup_steps=100000"), "warmup"),
    ],
    ids=["no data", "no GPU", "all warmup"],
)
def test_a_mistake_that_the_task_shows_makes_nothing_either(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    complains(*arguments, "--home", tmp_path / "new" / "home", said=(said,))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["line\nend", "\x1b[31mred", "left\u202eright", "\udcff"])
def test_a_home_that_no_terminal_can_show_is_refused(name: str, tmp_path: Path) -> None:
    complains(*QUICK, "--home", tmp_path / name, said=("--home", "cannot be shown"))
    assert not list(tmp_path.iterdir())


def test_exit_code_and_line_are_those_of_the_process(tmp_path: Path) -> None:
    done = knee_tune("run", "--task", "digit", "--home", tmp_path / "home", expect=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("knee-tune: --task digit: ")


def test_a_home_from_which_mlflow_could_load_no_model_is_refused(tmp_path: Path) -> None:
    complains(*QUICK, "--home", tmp_path / "a%20b", said=("--home", "a path with %20 in it"))
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    complains(*QUICK, "--home", f"{tmp_path}/file/home", said=(f"--home {tmp_path}/file/home",))


@pytest.mark.parametrize(
    ("home", "said"),
    [("", "it is empty"), ("x" * 300, "File name too long"), ("a\0b", "null byte")],
    ids=["none", "long", "NUL"],
)
def test_a_home_that_no_folder_can_be_is_refused(home: str, said: str) -> None:
    complains(*QUICK, "--home", home, said=("'--home'", said))


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
