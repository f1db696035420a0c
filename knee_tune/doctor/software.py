"""The interpreter and the libraries. Asks about them without importing them."""

import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from knee_tune.doctor.check import Check

DISTRIBUTION = "knee-tune"
PYTHONS = ((3, 11), (3, 13))
EXTRA_OF = {"torchvision": "vision", "fairseq-fixed": "translation"}


def check_python() -> Check:
    """Whether this Python is one that the project is tested with."""
    lowest, highest = (".".join(map(str, version)) for version in PYTHONS)
    return Check(
        "python",
        PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1],
        f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})",
        f"use Python {lowest} to {highest}",
    )


def check_libraries() -> Iterator[Check]:
    """Whether the big libraries have versions that ``pyproject.toml`` allows."""
    wanted = _requirements()
    for name in ("torch", "optuna", "mlflow", "torchvision", "fairseq-fixed"):
        requirement = wanted.get(name)
        extra = EXTRA_OF.get(name)
        install = f"pip install '{name}{requirement.specifier if requirement else ''}'"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            why = f"only the extra '{extra}' needs it" if extra else "every task needs it"
            yield Check(name, extra is not None, f"not installed; {why}", install)
            continue
        fits = requirement is None or requirement.specifier.contains(version, prereleases=True)
        yield Check(name, fits, version, install)


def check_fairseq_extensions() -> Check:
    """Whether fairseq's batching, which is compiled, was compiled."""
    name = "fairseq extensions"
    spec = importlib.util.find_spec("fairseq")
    if spec is None or not spec.submodule_search_locations:
        return Check(name, True, "fairseq is not installed")
    folder = Path(spec.submodule_search_locations[0])
    built = any((folder / "data").glob("data_utils_fast*.so"))
    return Check(
        name,
        built,
        "compiled" if built else f"not compiled in {folder}",
        "install fairseq-fixed again without build isolation, with a C++ compiler (docs: Install)",
    )


def check_code() -> Check:
    """What of a task's code decides whether a record or a trunk answers; nothing can be wrong."""
    return Check(
        "code",
        True,
        "a record or trunk answers for every module that knee-tune's training, the task and its "
        "model import, and for the versions of their libraries; not seen are modules loaded by a "
        "name made up at run time, and files that the task's own code reads and describe() does "
        "not tell of",
    )


def check_bytecode() -> Check:
    """Whether the big libraries are compiled once, rather than again by every process."""
    spec = importlib.util.find_spec("torch")
    there = spec is not None and spec.cached is not None and Path(spec.cached).exists()
    written = not sys.dont_write_bytecode
    return Check(
        "bytecode",
        written or there,
        "written" if written else f"not written; torch's is {'' if there else 'not '}there",
        "unset PYTHONDONTWRITEBYTECODE: without bytecode every process imports for seconds longer",
    )


def _requirements() -> dict[str, Requirement]:
    """What the installed knee-tune asks for, by distribution; empty in a bare checkout."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    return {parsed.name: parsed for parsed in map(Requirement, reversed(lines))}
