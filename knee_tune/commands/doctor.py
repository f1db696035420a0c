"""What a machine and a set-up are missing: ``knee-tune doctor``.

Every check answers; none raises or creates anything.
"""

import importlib.util
import multiprocessing
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import sqlalchemy
from packaging.requirements import Requirement

from knee_tune.errors import first_line
from knee_tune.urls import is_url, shown_url, sqlite_file
from knee_tune.workers.cores import usable_cores


@dataclass(frozen=True)
class Check:
    """One finding: ``detail`` is what is there, ``advice`` what to do where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def check_devices() -> Iterator[Check]:
    """GPUs and the collectives between ranks."""
    try:
        import torch
        import torch.distributed as dist
    except (ImportError, OSError) as error:
        yield Check("torch imports", False, first_line(error), "install torch again")
        return
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    driver = shutil.which("nvidia-smi") is not None
    yield Check(
        "gpu",
        bool(gpus) or not driver,
        ", ".join(gpus) or f"none; torch is built for CUDA {torch.version.cuda or '(no)'}",
        "an NVIDIA driver is here but torch sees no GPU: check its CUDA version against the driver",
    )
    available = dist.is_available()
    backends = [
        name
        for name, present in (
            ("gloo", available and dist.is_gloo_available()),
            ("nccl", available and dist.is_nccl_available()),
        )
        if present
    ]
    needed = {"gloo", "nccl"} if gpus else {"gloo"}
    yield Check(
        "collectives",
        needed <= set(backends),
        ", ".join(backends) or "none",
        f"runs with --nproc > 1 need {' and '.join(sorted(needed))}: use an official torch build",
    )


def check_cpu() -> Check:
    """Cores that this process may use, its threads and the memory."""
    memory = psutil.virtual_memory()
    threads = os.environ.get("OMP_NUM_THREADS")
    return Check(
        "cpu",
        memory.available > 2**30,
        f"{usable_cores()} cores"
        + (f", OMP_NUM_THREADS={threads}" if threads else "")
        + f", {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free",
        "less than 1 GiB of memory is free",
    )


def check_start_method() -> Check:
    """Whether worker groups can be forked from a warm server."""
    methods = multiprocessing.get_all_start_methods()
    return Check(
        "forkserver",
        "forkserver" in methods,
        ", ".join(methods),
        "this system cannot fork workers: use --runner torchrun",
    )


# Where studies, records and data go: is it there, does it answer? Creates nothing.

TIMEOUT = 3.0
"""Seconds that a storage or a tracking server has to answer."""

ENOUGH_DISK = 2 * 2**30

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "fuse.sshfs"}


def check_home(home: Path) -> Iterator[Check]:
    """Whether studies can be written, with room for them, on a disk that SQLite can lock."""
    place = _existing(home)
    yield Check(
        "home",
        place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        f"{home}" + ("" if home.exists() else " (will be created)"),
        f"{place} cannot be written to: choose another place with --home",
    )
    free = shutil.disk_usage(place).free
    yield Check(
        "disk",
        free >= ENOUGH_DISK,
        f"{free / 2**30:.1f} GiB free",
        "checkpoints need room: free some, or choose another place with --home",
    )
    kind = _file_system(place)
    yield Check(
        "file system",
        kind not in NETWORK_FILE_SYSTEMS,
        kind or "unknown",
        "SQLite is not safe on a network file system: use a local --home, or PostgreSQL with "
        "--storage",
    )


def check_storage(url: str) -> Check:
    """Whether the study's storage answers."""
    shown = shown_url(url, password="***")
    if not is_url(url):
        return Check("storage", False, f"{shown}: no URL", "--storage must be a SQLAlchemy URL")
    parsed = sqlalchemy.make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return _check_sqlite("storage", url)
    limits = {"postgresql": "connect_timeout", "mysql": "connect_timeout"}
    arguments = {limits[backend]: int(TIMEOUT)} if backend in limits else {}
    advice = "start the database or correct --storage (or OPTUNA_STORAGE)"
    try:
        engine = sqlalchemy.create_engine(parsed, connect_args=arguments)
        with engine.connect():
            return Check("storage", True, f"{shown} answers")
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        return Check("storage", False, f"{shown}: {first_line(error)}", advice)


def check_tracking(uri: str) -> Check:
    """Whether the MLflow server, or the place of its file, answers."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return _check_sqlite("tracking", uri)
    shown = shown_url(uri)
    if parts.scheme not in ("http", "https"):
        return Check("tracking", True, f"{shown} (not asked)")
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT):
            return Check("tracking", True, f"{shown} answers")
    except urllib.error.HTTPError as error:
        return Check("tracking", error.code < 500, f"{shown} answers with {error.code}")
    except (OSError, ValueError) as error:
        return Check(
            "tracking",
            False,
            f"{shown}: {first_line(error)}",
            "start the server or correct --tracking-uri; a run keeps its records until it answers",
        )


def check_data(data_dir: Path) -> Check:
    """Which data sets are prepared; none is fine for the embedded ones."""
    found = sorted(path.parent.name for path in data_dir.glob("*/manifest.json"))
    nothing = "none prepared (the embedded ones need no preparation)"
    return Check("data", True, f"{', '.join(found) or nothing} in {data_dir}")


def _existing(path: Path) -> Path:
    """``path`` or its nearest parent that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.access(place, os.F_OK))


def _file_system(place: Path) -> str:
    """Type of the file system that ``place`` lies on; empty if the system does not say."""
    mounts = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    resolved = place.resolve()
    return next(
        (mounts[str(p)] for p in (resolved, *resolved.parents) if str(p) in mounts),
        "",
    )


def _check_sqlite(name: str, url: str) -> Check:
    shown, path = shown_url(url), sqlite_file(url)
    if path is None:
        return Check(name, False, f"{shown} is in memory", "name a file: nothing would be kept")
    place = _existing(path)
    if place != path.absolute():
        writable = place.is_dir() and os.access(place, os.W_OK | os.X_OK)
        return Check(name, writable, f"{shown} (will be created)", f"cannot write to {place}")
    try:
        with path.open("r+b") as file:
            header = file.read(16)
    except OSError as error:
        return Check(name, False, f"{shown}: {first_line(error)}", f"cannot write to {path}")
    usable = header in (b"", b"SQLite format 3\0")
    return Check(name, usable, shown, f"{path} is not an SQLite file: name another place")


# The interpreter and the libraries. Asks about them without importing them.

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


__all__ = ["Check", "examine"]


def examine(
    *, home: Path, data_dir: Path, storage_url: str, tracking_uri: str
) -> tuple[Check, ...]:
    """Look at the interpreter, the libraries, the devices, the places and the servers."""
    return (
        check_python(),
        *check_libraries(),
        check_fairseq_extensions(),
        *check_devices(),
        check_cpu(),
        check_start_method(),
        check_bytecode(),
        check_code(),
        *check_home(home),
        check_storage(storage_url),
        check_tracking(tracking_uri),
        check_data(data_dir),
    )
