"""Whatever is typed or written: one short line, exit code 2, nothing made; or it is taken.

Nothing is trained: what would make a home is where an input counts as taken. Some hundreds of
inputs, always the same; ``KNEE_TUNE_INPUTS=10000`` tries as many, and others every time.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydantic import BaseModel
from typer.main import get_group

from knee_tune.cli import main
from knee_tune.cli.commands import app
from knee_tune.config.strict_yaml import available
from knee_tune.config.study import StudySpec
from knee_tune.tasks.registry import TASKS, task_entry
from tests.command_line import environment

INPUTS = os.environ.get("KNEE_TUNE_INPUTS")
LONGEST_ANSWER = 600

any_input = settings(
    max_examples=int(INPUTS or 300) // 3,
    derandomize=INPUTS is None,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Taken(BaseException):
    """The input is taken: from here on something would be made."""


# What people might type


GROUP = get_group(app)


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}
    for name, command in GROUP.commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {word}": each for word, each in inner.items()} if inner else {}
        found |= {} if inner else {name: command}
    return found


COMMANDS = commands()

NUMBERS = ("0", "-1", "1", "2", "3.5", "1e400", "-1e400", "nan", "inf", "1e12", "1e-300", "9" * 400)
ODD = (
    *("", " ", "-", "--", "--help", "=", "a=b", "null", "true", "~", ".", "..", "/", "/dev/null"),
    *(
        "'",
        '"',
        "\\",
        "[",
        "[" * 3000,
        "{a: " * 300,
        "- " * 300,
        "&a [*a]",
        "!!python/name:os",
        "%s",
    ),
    *("a\nb", "a\0b", "\x1b[31m", "\u202e", "\ud800", "\u0661\u0662", "x" * 5000, "x/" * 3000),
    *("../../x", "/proc/self/mem", "a b", "🙂", "0x10", "1_000", "1,2", "1,,2", "3:5", "9" * 30),
)
EXAMPLES = Path(__file__).parents[2] / "examples"
USUAL = {
    "--task": [*TASKS, f"{EXAMPLES}/own_task/my_task.py:Wine"],
    "script": [f"{EXAMPLES}/pytorch/train.py"],
    "--seed-lr": ["1e-3:1e-1", "0.1,0.2", "0.1"],
    "--explore": ["0.1:0.9", "0.1:0.9:0.2"],
    "--as": ["hf", "torch"],
    "--study": [*available("studies")],
    "--preset": ["quick", "demo", "paper"],
    "--sampler": ["grid", "gp", "random"],
    "--pruner": ["none", "knee"],
    "--goal": ["ridge"],
    "--confirm": ["3:5"],
    "--total-runs": ["12"],
    "--total-steps": ["9000"],
    "--schedule": ["step", "linear"],
    "--runner": ["torchrun"],
    "--launcher": ["srun torchrun", "env torchrun"],
    "--device": ["cpu"],
    "--target": ["95", "0.5"],
    "--budgets": ["1,2"],
    "--schedules": ["knee,linear"],
    "--seed-lrs": ["0.1,0.2"],
    "--explore-fractions": ["0.1,0.5"],
    "--kind": ["raw"],
    "--format": ["md"],
    "task": [*TASKS],
    "table": ["table15", "table16", "table1"],
}

texts = st.one_of(
    st.sampled_from(NUMBERS + ODD),
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
)


def fields(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The dotted names of a model's fields."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


FIELDS = sorted(
    {*fields(StudySpec, "")}.union(
        *({*fields(task_entry(name).recipe_type(), "recipe.")} for name in TASKS)
    )
)

values = st.one_of(
    texts,
    st.sampled_from(["[0.3,0.30000000000000004]", "[0.1, 0.2]", "{low: 0.1, high: 0.2}", "[]"]),
    st.lists(texts, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
    st.lists(texts, max_size=3).map(
        lambda items: "{" + ", ".join(f"{key}: 1" for key in items) + "}"
    ),
)

overrides = st.one_of(
    st.tuples(st.sampled_from(FIELDS), values).map("=".join),
    st.tuples(texts, values).map("=".join),
    texts,
)


def option(parameter: Any) -> SearchStrategy[list[str]]:
    """A way to give one parameter, right or wrong."""
    name = max(parameter.opts, key=len)
    if parameter.param_type_name == "argument":
        return value_of(parameter, name).map(lambda value: [value])
    if parameter.is_flag:
        return st.sampled_from([*parameter.opts, *parameter.secondary_opts]).map(lambda at: [at])
    return value_of(parameter, name).map(lambda value: [name, value])


def value_of(parameter: Any, name: str) -> SearchStrategy[str]:
    if name == "--set":
        return overrides
    usual = USUAL.get(name, ["1", "2"])
    return st.one_of(st.sampled_from(usual), texts)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with what it needs, and up to four other options, most of them wrong."""
    words = draw(st.sampled_from(sorted(COMMANDS)))
    parameters = [each for each in COMMANDS[words].params if each.name != "help"]
    # As people type: a task that there is, in most cases.
    line = ["--task", draw(st.sampled_from(USUAL["--task"]))] if draw(st.booleans()) else []
    if not any("--task" in each.opts for each in parameters):
        line = []
    needed = [each for each in parameters if each.required]
    chosen = draw(st.lists(st.sampled_from(parameters), max_size=4))
    for parameter in [*needed, *chosen]:
        line += draw(option(parameter))
    return [*words.split(), *line]


# What comes of it


class NoRunner:
    """Stands in for a warm process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Nothing is started."""

    def close(self) -> None:
        """Nothing is ended."""


@pytest.fixture(scope="module")
def _nothing_is_made() -> Iterator[None]:
    def taken(*arguments: Any, **options: Any) -> Any:
        raise Taken

    places: dict[str, Any] = {
        # Built once: that takes longer than most answers.
        "typer.main.get_group": lambda app: GROUP,
        "knee_tune.commands.home.Home.create": taken,
        "knee_tune.commands.workers.ForkserverRunner": NoRunner,
        "knee_tune.commands.opened.preload": lambda **options: mock.Mock(),
        "knee_tune.study.dashboard.serve_dashboard": taken,
        "knee_tune.commands.look.examine": lambda **places: (),
        "knee_tune.tasks.translation.prepare.download": taken,
        "knee_tune.tasks.translation.prepare.new_folder": taken,
        "knee_tune.tasks.vision.cifar10_prepare.download": taken,
        "knee_tune.tasks.vision.imagenet_index.new_folder": taken,
        "knee_tune.tasks.vision.images.new_folder": taken,
    }
    with ExitStack() as stack:
        for place, stand_in in places.items():
            stack.enter_context(mock.patch(place, stand_in))
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, and what is in it before a command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answered(folder: Path, *arguments: str) -> int:
    """The exit code of a command, once its answer is looked at."""
    before = sorted(folder.rglob("*"))
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["knee-tune", *arguments]),
        mock.patch.dict(os.environ, environment(), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except Taken:
            return 0
    said = err.getvalue()
    assert code in (0, 2), said
    assert len(said) < LONGEST_ANSWER, said
    if code == 2:
        assert said.count("\n") == (1 if said else 0), said
        assert sorted(folder.rglob("*")) == before
    return code


@pytest.mark.usefixtures("_nothing_is_made")
@any_input
@given(arguments=command_lines())
def test_any_command_line(folder: Path, arguments: list[str]) -> None:
    answered(folder, *arguments)


@pytest.mark.usefixtures("_nothing_is_made")
@any_input
@given(
    task=st.sampled_from([*TASKS]), given_=st.lists(overrides, min_size=1, max_size=3, unique=True)
)
def test_any_override(folder: Path, task: str, given_: list[str]) -> None:
    options = [word for each in given_ for word in ("--set", each)]
    answered(folder, "run", "--task", task, *options)


# What people might write

FILES = {
    path: path.read_text(encoding="utf-8").splitlines()
    for kind in ("studies", "search_spaces")
    for path in available(kind).values()
    if path.stat().st_size < 5000  # reading the long tables takes a quarter of a second
}


@st.composite
def files(draw: st.DrawFn) -> tuple[Path, bytes]:
    """A file that comes with knee-tune, and what became of it."""
    path = draw(st.sampled_from(sorted(FILES)))
    lines = list(FILES[path])
    for _ in range(draw(st.integers(min_value=1, max_value=3))):
        at = draw(st.integers(min_value=0, max_value=len(lines) - 1))
        key, colon, _ = lines[at].partition(":")
        match draw(st.integers(min_value=0, max_value=6)):
            case 0 | 1 | 2:
                lines[at] = f"{key}{colon} {draw(values)}"
            case 3:
                lines.insert(at, draw(st.sampled_from(lines)))
            case 4:
                lines[at] = draw(texts)
            case 5:
                lines[at] = " " * draw(st.integers(min_value=0, max_value=9)) + lines[at].lstrip()
            case 6 if len(lines) > 1:
                del lines[at]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    if draw(st.integers(min_value=0, max_value=9)) == 0:
        at = draw(st.integers(min_value=0, max_value=len(content) - 1))
        content = content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]
    return path, content


@pytest.mark.usefixtures("_nothing_is_made")
@any_input
@given(written=files())
def test_any_file(folder: Path, written: tuple[Path, bytes]) -> None:
    path, content = written
    place = folder / path.parent.name / path.name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    what = "--task" if path.parent.name == "search_spaces" else "--study"
    try:
        answered(folder, "run", what, path.stem)
    finally:
        place.unlink()
