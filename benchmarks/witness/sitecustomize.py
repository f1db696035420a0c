"""Writes down every step that is trained, apart from knee-tune's own account of them.

Python runs this first of all where its folder is on ``PYTHONPATH`` (see ``benchmarks/faults.py``).
Rank 0 of a group appends a line per optimizer update to the file named by ``FAULTS_WITNESS``, which
a SIGKILL cannot take back: ``run pid step``.
"""

import os
import sys
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LEARNERS = {
    "knee_tune.training.single": ("SingleModel", "update"),
    "knee_tune.training.fused": ("FusedModels", "update"),
    "knee_tune.scripts.learner": ("ScriptLearner", "check_lrs"),
}
"""Modules, their classes, and what is called for every optimizer update when it is made."""


class Witness:
    """Finds those modules as Python does, and puts itself between the loop and the update."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where a module is; None, for nearly all of them: let others look."""
        spec = PathFinder.find_spec(name, path) if name in LEARNERS else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_watch(module: ModuleType) -> None:
                load(module)
                kind, method = LEARNERS[name]
                _watch(getattr(module, kind), method)

            spec.loader.exec_module = load_and_watch  # type: ignore[method-assign]
        return spec


def _watch(learner: Any, method: str) -> None:
    update = getattr(learner, method)

    @wraps(update)
    def watched(self: Any, step: int) -> None:
        update(self, step)
        if self._group.leads:
            line = f"{self._plan.checkpoint_dir.name} {os.getpid()} {step}\n"
            os.write(_file(), line.encode())

    setattr(learner, method, watched)


def _file() -> int:
    global _descriptor
    if _descriptor is None:
        path = os.environ["FAULTS_WITNESS"]
        _descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return _descriptor


_descriptor: int | None = None

if "FAULTS_WITNESS" in os.environ:
    sys.meta_path.insert(0, Witness)
