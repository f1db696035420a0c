"""What other code saved is not taken for what this code would have done."""

import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import knee_tune
from knee_tune.tasks.registry import TASKS
from knee_tune.training.fingerprint import TrainingCode

Write = Callable[..., None]
"""Writes modules, by their paths, into a folder that Python finds them in."""

NET = "class Net:\n    activation = 'ReLU'\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    def into(sources: Mapping[str, str], *, folder: str = "work") -> None:
        place = tmp_path / folder
        if not place.is_dir():
            place.mkdir()
            monkeypatch.syspath_prepend(place)
        for path, source in sources.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(source)
        importlib.invalidate_caches()

    return into


def of_own(task: str = "my_task") -> str:
    return TrainingCode(task).fingerprint


def of_digits() -> TrainingCode:
    return TrainingCode(TASKS["digits"].task.partition(":")[0])


@pytest.mark.parametrize(
    ("statement", "helper"),
    [
        ("import my_net", "my_net.py"),
        ("from my_net import Net", "my_net.py"),
        ("def build_model():\n    from my_net import Net", "my_net.py"),
        (
            "if True:\n    try:\n        import my_net as net\n    except ImportError: ...",
            "my_net.py",
        ),
        ("import parts.nets.deep as deep", "parts/nets/deep.py"),
        ("import parts.nets.deep", "parts/__init__.py"),
        ("from parts.nets import deep", "parts/nets/deep.py"),
        ("from parts import nets", "parts/nets/__init__.py"),
        ("from parts.nets import *", "parts/nets/deep.py"),
        ("import code", "code.py"),
    ],
)
def test_a_helper_that_the_task_imports_counts(statement: str, helper: str, write: Write) -> None:
    write({"my_task.py": statement, "parts/nets/__init__.py": "", helper: NET})
    before = of_own()
    assert of_own() == before
    write({helper: NET.replace("ReLU", "Tanh")})
    assert of_own() != before


@pytest.mark.parametrize(
    ("statement", "helper"),
    [
        ("from . import net", "mine/net.py"),
        ("from .net import Net", "mine/net.py"),
        ("from .. import other", "other.py"),
        ("from ..nets.deep import Net", "nets/deep.py"),
        ("from ..nets import deep", "nets/__init__.py"),
        ("import project.nets", "nets/__init__.py"),
    ],
)
def test_a_helper_in_the_package_of_the_task_counts(
    statement: str, helper: str, write: Write
) -> None:
    helper = f"project/{helper}"
    write({"project/mine/__init__.py": "", "project/mine/task.py": statement, helper: NET})
    before = of_own("project.mine.task")
    write({helper: NET.replace("ReLU", "Tanh")})
    assert of_own("project.mine.task") != before


def test_helpers_of_helpers_count_and_may_import_each_other(write: Write) -> None:
    write({"my_task.py": "import a", "a.py": "import b", "b.py": "import a, c", "c.py": NET})
    before = of_own()
    write({"c.py": ""})
    assert of_own() != before


def test_a_file_that_nobody_imports_does_not_count(write: Write) -> None:
    write({"my_task.py": "import json"})
    before = of_own()
    write({"notes.py": "import numpy\n", "test_my_task.py": "import my_task\n"})
    assert of_own() == before


def test_what_is_imported_for_typing_alone_does_not_count(write: Write) -> None:
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import helper\n"
    write({"my_task.py": typed, "helper.py": NET})
    before = of_own()
    write({"helper.py": NET.replace("ReLU", "Tanh")})
    assert of_own() == before


def test_a_module_found_by_its_class_alone_counts(write: Write) -> None:
    """A model that is loaded by name: its class tells where it is."""
    write({"my_task.py": "NAME = 'my_net'", "my_net.py": NET})

    def found() -> str:
        code = TrainingCode("my_task")
        code.follow(["my_net", "torch.nn.modules.linear", "builtins"])
        return code.fingerprint

    before = found()
    write({"my_net.py": ""})
    assert found() != before


PLAIN = """
import math
def lr(n):
    return math.sqrt(n) * 2
"""


@pytest.mark.parametrize(
    ("source", "same"),
    [
        ("import math\ndef lr(n): return (math.sqrt(n) * 2)  # as in the paper\n", True),
        (
            '"""Doc."""\nimport math\n\ndef lr(n):\n  """LR."""\n  return math.sqrt(n)*2',
            True,
        ),
        (PLAIN + '__version__ = "1.2"\n', True),
        (PLAIN.replace("2", "3"), False),
        (PLAIN.replace("2", "2.0"), False),
        (PLAIN.replace("* 2", "+ 2"), False),
        (PLAIN + "assert lr(1) == 2\n", False),
        (PLAIN + "lr = None\n", False),
        (PLAIN.replace("import math", "from math import *"), False),
    ],
)
def test_what_is_done_counts_not_how_it_is_written(source: str, same: bool, write: Write) -> None:
    write({"my_task.py": PLAIN})
    before = of_own()
    write({"my_task.py": source})
    assert (of_own() == before) == same


def test_a_docstring_counts_in_a_file_that_reads_docstrings(write: Write) -> None:
    source = '"""hidden=64"""\nhidden = int(__doc__.removeprefix("hidden="))\n'
    write({"my_task.py": source})
    before = of_own()
    write({"my_task.py": source.replace("=64", "=32")})
    assert of_own() != before


@pytest.mark.parametrize(
    "source", ["this is no Python", f"x = 0x{'f' * 5000}", "+".join("1" * 3000)]
)
def test_any_file_has_a_fingerprint(source: str, write: Write) -> None:
    write({"my_task.py": "import odd", "odd.py": source})
    before = of_own()
    write({"odd.py": f"{source}0"})
    assert of_own() != before


def test_own_code_elsewhere_counts_and_an_installed_library_by_its_version(write: Write) -> None:
    write({"my_task.py": "import shared, library"})
    write({"shared.py": NET}, folder="elsewhere")
    metadata = {
        "METADATA": "Name: the-library\nVersion: 1.0\n",
        "RECORD": "library/__init__.py,,\n",
    }
    installed = {f"the_library-1.0.dist-info/{name}": text for name, text in metadata.items()}
    write({"library/__init__.py": NET, **installed}, folder="site-packages")
    before = of_own()
    assert TrainingCode("my_task").libraries["the-library"] == "1.0"

    write({"library/__init__.py": ""}, folder="site-packages")
    assert of_own() == before
    write({"shared.py": ""}, folder="elsewhere")
    assert of_own() != before


def test_an_installed_task_counts_with_the_code_of_its_distribution(write: Write) -> None:
    metadata = {"METADATA": "Name: mine\nVersion: 1.0\n", "top_level.txt": "my_task\nmy_net\n"}
    installed = {f"mine-1.0.dist-info/{name}": text for name, text in metadata.items()}
    modules = {"my_task.py": "import my_net", "my_net.py": NET}
    write(modules | installed, folder="site-packages")
    before = of_own()
    write({"my_net.py": ""}, folder="site-packages")
    assert of_own() != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package that is found instead of it."""
    original = Path(knee_tune.__file__).parent
    copy = shutil.copytree(original, tmp_path / "knee_tune", ignore=_but_sources)
    monkeypatch.syspath_prepend(tmp_path)
    return copy


def _but_sources(folder: str, names: list[str]) -> list[str]:
    unwanted = {"commands", "cli", "tracking", "study", "__pycache__"}
    return [name for name in names if name in unwanted]


@pytest.mark.parametrize(
    "source",
    [
        *("training/loop.py", "training/optimizer.py", "schedules/schedule.py"),
        *("training/single.py", "training/fused.py"),
        *("workers/group.py", "workers/rank.py", "config/recipe.py", "plans/plan.py"),
        *("tasks/seeding.py", "tasks/base.py", "tasks/tabular/task.py"),
    ],
)
def test_what_every_run_rests_on_counts(source: str, package: Path) -> None:
    before = of_digits().fingerprint
    path = package / source
    text = path.read_text()
    path.write_text(f"# The start.\n{text}\n# The end.\n")
    assert of_digits().fingerprint == before
    path.write_text(f"{text}changed = True\n")
    assert of_digits().fingerprint != before


@pytest.mark.parametrize(
    "source", ["tasks/translation/task.py", "report/document.py", "pruners.py"]
)
def test_what_no_run_of_the_task_rests_on_does_not_count(source: str, package: Path) -> None:
    before = of_digits().fingerprint
    with (package / source).open("a") as file:
        file.write("changed = True\n")
    assert of_digits().fingerprint == before


def test_libraries_of_the_task_count() -> None:
    libraries = of_digits().libraries
    assert {"torch", "scikit-learn", "numpy", "python"} <= libraries.keys()
    assert not {"mlflow", "optuna", "fairseq-fixed"} & libraries.keys()


def test_another_version_of_a_library_is_other_code() -> None:
    one, other = of_digits(), of_digits()
    other.libraries["torch"] += ".post1"
    assert one.fingerprint != other.fingerprint
