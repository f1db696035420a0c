"""Imports run downwards only, and each big library has one room that knows it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import knee_tune
from knee_tune.tasks.registry import TASKS

PACKAGE = Path(knee_tune.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = (
    {"urls"},
    {"errors", "files", "leftovers"},
    {"schedules", "databases"},
    {"config"},
    {"records"},
    {"plans"},
    {"workers"},
    {"tasks"},
    {"training"},
    {"scripts"},
    {"hf", "lightning"},
    {"analysis"},
    {"jobs"},
    {"runs"},
    {"stats"},
    {"study", "tracking", "report"},
    {"pruners"},
    {"commands"},
    {"cli"},
    {"testing"},
    {"__main__"},
)
"""From the bottom up. A room may import lower rooms, never one beside it or above."""

ROOM_OF = {
    "optuna": ("study",),
    "mlflow": ("tracking",),
    "fairseq": ("tasks/translation",),
    "torchvision": ("tasks/vision",),
    "lightning": ("lightning.py",),
    "transformers": ("hf.py", "tasks/bert"),
    "tokenizers": ("tasks/bert",),
    "accelerate": ("hf.py",),
    "fsspec": ("runs/object_store.py",),
    "s3fs": (),
    "ray": ("workers/ray_runner.py",),
}
"""The only folders and files that may import this library."""


def level(room: str) -> int:
    """The layer that ``room`` lies in, counted from the bottom."""
    return next(index for index, rooms in enumerate(LAYERS) if room in rooms)


def room_of(module: str) -> str:
    """``knee_tune.config.recipe`` -> ``config``; the package itself has no room."""
    return [*module.split("."), ""][1]


def imports(path: Path, *, top: bool = False) -> Iterator[str]:
    """Full names that a file imports anywhere in it, in functions and for typing too.

    ``top``: only those that it needs to be imported itself.
    """
    package = path.relative_to(PACKAGE.parent).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if name_of(path) != "knee_tune"], ids=name_of
)
def test_imports_run_downwards(path: Path) -> None:
    """The package itself imports what it offers when that is asked for, and nothing before."""
    room = room_of(name_of(path))
    upwards = [
        imported
        for imported in imports(path, top=not room)
        if imported.startswith("knee_tune.")
        and room_of(imported) not in (room, "__version__")
        and level(room_of(imported)) >= level(room)
    ]
    assert not upwards, f"{name_of(path)} must not import {', '.join(upwards)}"


def test_the_package_imports_what_is_public_when_it_is_used() -> None:
    program = (
        "import sys, knee_tune\n"
        "print(*[name for name in sys.modules if 'knee_tune' in name or name == 'torch'])\n"
        "print(all(hasattr(knee_tune, name) for name in knee_tune.__all__))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["knee_tune", "True"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_big_libraries_stay_in_their_room(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    strays = [
        imported
        for imported in imports(path)
        if not any(
            f"{place}/".startswith(f"{room}/")
            for room in ROOM_OF.get(imported.split(".")[0], (place,))
        )
    ]
    assert not strays, f"{name_of(path)} must not import {', '.join(strays)}"


def test_only_the_registry_names_concrete_tasks() -> None:
    concrete = {f"knee_tune.tasks.{path.parent.name}" for path in PACKAGE.glob("tasks/*/*.py")}
    named = {".".join(entry.task.split(".")[:3]) for entry in TASKS.values()}
    assert concrete == named
    offenders = [
        name_of(path)
        for path in MODULES
        if "tasks" not in path.relative_to(PACKAGE).parts
        and any(".".join(name.split(".")[:3]) in concrete for name in imports(path))
        and room_of(name_of(path)) != "commands"
    ]
    assert not offenders


def test_the_finder_sees_lazy_and_typing_only_imports() -> None:
    assert "knee_tune.tasks.base.Task" in set(imports(PACKAGE / "tasks" / "registry.py"))
    assert "knee_tune.tasks.simple.AsTask" in set(imports(PACKAGE / "tasks" / "outside.py"))
    assert "fairseq.tasks.translation" in {
        name.rpartition(".")[0]
        for name in imports(PACKAGE / "tasks" / "translation" / "fairseq_bridge.py")
    }


def test_any_module_can_be_imported_first() -> None:
    """As a command does it: a circle of imports breaks only from some of its modules."""
    names = {name_of(path) for path in MODULES}
    needs: dict[str, set[str]] = {}
    for path in MODULES:
        found = imports(path, top=True)
        whole = {name if name in names else name.rpartition(".")[0] for name in found}
        needs[name_of(path)] = whole & names
    TopologicalSorter(needs).prepare()  # CycleError names the circle


def test_ranks_warm_up_before_a_command_imports_big_libraries() -> None:
    """What ``run`` imports before it starts the process that ranks are forked from."""
    program = "import sys, knee_tune.commands.run; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    later = {"torch", "mlflow", "alembic", "sklearn", "scipy", "pandas", "plotly", "jinja2"}
    assert not (later | {"optuna_dashboard", "fairseq", "ray"}) & set(done.stdout.split())


def test_help_imports_no_big_library() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "knee_tune", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "knee_tune.cli" in imported
    big = {"torch", "optuna", "mlflow", "fairseq", "numpy", "pandas", "sklearn", "scipy"}
    big |= {"transformers", "accelerate"}
    assert not big & imported
