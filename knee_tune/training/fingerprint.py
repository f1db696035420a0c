"""A fingerprint of the code that trains: what was saved by other code is not what this would do."""

import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import knee_tune
from knee_tune.tasks.base import Task

_TRAINS = (
    *("training/*.py", "schedules/*.py", "tasks/*.py"),
    *("distributed/group.py", "planning/plan.py", "specs/recipe.py"),
)
"""What decides the bits of every run, in this package."""

_IMPORT = re.compile(rb"^[ \t]*(?:from|import)[ \t]+(\w+)", re.MULTILINE)
"""The top-level name of what a line imports. A line of prose that looks so does no harm."""

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "fairseq": "fairseq-fixed", "PIL": "pillow"}
"""Libraries that are installed under another name than they are imported by."""


def code_fingerprint(task: Task[Any]) -> str:
    """Changes with the sources of loop and task, and the libraries they import.

    A task's sources are its module and, in a package, the modules beside it. Reads some 30 files:
    milliseconds.
    """
    package = Path(knee_tune.__file__).parent
    ours = [path for pattern in _TRAINS for path in sorted(package.glob(pattern))]
    sources = [path.read_bytes() for path in dict.fromkeys((*ours, *_sources(type(task))))]
    libraries = _versions({name.decode() for source in sources for name in _IMPORT.findall(source)})
    digest = hashlib.sha256()
    for part in (*sources, *libraries):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _sources(task_type: type) -> Iterator[Path]:
    for kind in task_type.__mro__:
        module = sys.modules[kind.__module__]
        if kind is object or not getattr(module, "__file__", None):
            continue
        path = Path(inspect.getfile(module))
        if kind.__module__.partition(".")[0] in sys.stdlib_module_names:
            continue
        yield from sorted(path.parent.glob("*.py")) if module.__package__ else [path]


def _versions(names: Iterable[str]) -> Iterator[bytes]:
    for name in sorted(set(names) - sys.stdlib_module_names - {"knee_tune"}):
        try:
            yield f"{name} {version(_DISTRIBUTIONS.get(name, name))}".encode()
        except PackageNotFoundError:
            continue  # a module of the people's own
