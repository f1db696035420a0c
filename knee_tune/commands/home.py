"""Where studies are kept: the home folder, and the storage and tracking that may be elsewhere."""

import fcntl
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from knee_tune.errors import HomeGoneError, UserError, disk_trouble, one_line, printable
from knee_tune.files import drafts, remove
from knee_tune.leftovers import OF_TORCHRUN, claimed, sweep, sweep_scratch
from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.tasks.prepared_folder import FILLING
from knee_tune.tracking import local_store, resolve_tracking_uri, ui_command
from knee_tune.urls import shown_url, sqlite_url

ABANDONED_SECONDS = 60.0
"""Age from which a note that is not whole is nobody's: one is written in milliseconds."""

_NOTES = (
    *("trunks/*.draft", "reports/.*.draft", "budgets/*.draft", "logs/*/*/.*.draft"),
    *("outbox/*/*/*.draft", "outbox/*/*/*.ack-draft", "artifacts/optuna/*.draft"),
)


@dataclass(frozen=True)
class Home:
    """``optuna.db``, ``mlflow.db`` and the folders ``artifacts``, ``checkpoints``, ``trunks``,
    ``logs``, ``reports``, ``data``, ``budgets``, ``outbox`` and ``replays`` below ``root``.
    ``prepared``: data sets that lie elsewhere.

    Making one touches nothing; a command that is going to train holds it (:meth:`held`). UserError
    for a path that no URL and no terminal could show (with line ends or bytes that are no text),
    and for one from which no model could be loaded.
    """

    root: Path
    prepared: Path | None = None

    def __post_init__(self) -> None:
        path = str(self.root.absolute())
        if path != printable(path) or "\n" in path:
            raise UserError(
                f"`home` {one_line(str(self.root))}: its path has characters that cannot be shown; "
                "choose another folder"
            )
        if escape := re.search("%[0-9A-Fa-f]{2}", path):  # it makes another character of it
            raise UserError(
                f"`home` {self.root}: MLflow loads no model from a path with {escape[0]} in it; "
                "choose another folder"
            )

    @property
    def optuna_url(self) -> str:
        """Optuna's storage, unless another one is named."""
        return sqlite_url(self.root / "optuna.db")

    @property
    def data(self) -> Path:
        """Prepared data sets: ``KNEE_TUNE_DATA``, or ``data/`` in here."""
        if self.prepared is not None:
            return self.prepared
        return Path(os.environ.get("KNEE_TUNE_DATA") or self.root / "data").absolute()

    @property
    def dashboard_artifacts(self) -> Path:
        """Files that Optuna Dashboard shows."""
        return self.root.absolute() / "artifacts" / "optuna"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints and kept weights, a folder per training run (see ``plans/identity.py``)."""
        return self.root.absolute() / "checkpoints"

    def weights(self, noted: str) -> Path:
        """Where kept weights are now: the home may have been moved since their path was noted."""
        path = Path(noted)
        _, _, inside = noted.rpartition(f"/{self.checkpoints.name}/")
        return path if path.is_file() or not inside else self.checkpoints / inside

    @property
    def trunks(self) -> Path:
        """Trunk checkpoints, a folder per trunk."""
        return self.root.absolute() / "trunks"

    def logs(self, study: str) -> Path:
        """What the ranks of a study printed."""
        return self.root.absolute() / "logs" / study

    def create(self) -> Path:
        """Make the folder, which is returned.

        UserError if that is impossible, OSError if it is the disk's fault.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if disk_trouble(error):
                raise
            raise UserError(
                f"`home` {self.root}: cannot be made ({error.strerror}); name a folder you can "
                "write to"
            ) from error
        if not os.access(self.root, os.W_OK):
            raise UserError(f"`home` {self.root}: is not writable; name another folder")
        return self.root

    @contextmanager
    def held(self, *, logs: Path) -> Iterator["HeldHome"]:
        """The home for a command that trains, made if need be, with its folder for ``logs``.

        If it goes away meanwhile, HomeGoneError is how that ends, whatever came of it. After a
        UserError nothing is left of a home that was made here, as long as there is nothing in it
        but what was written to ``logs``, to which the error does not send people.
        """
        root = self.root.absolute()
        missing = [each for each in (root, *root.parents) if not each.exists()]
        _, descriptor = claimed(self.create)
        held = HeldHome(home=self, descriptor=descriptor)
        try:
            self.checkpoints.mkdir(exist_ok=True)
            logs.parent.mkdir(parents=True, exist_ok=True)
            yield held
            held.raise_if_gone()
        except UserError as error:
            held.raise_if_gone()
            if missing and str(logs) not in str(error):
                held.unmake(missing, logs=logs)
            raise
        except BaseException:
            held.raise_if_gone()
            raise
        finally:
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove what killed commands left half-written, where nobody is at work any more."""
        for folder in (*self.checkpoints.glob("*/"), *self.trunks.glob("*/")):
            if left := drafts(folder):
                lock = file_lock(folder.with_name(f"{folder.name}.lock"))
                if try_lock(lock):
                    for each in left:
                        remove(each)
                    lock.release()
        for each in chain.from_iterable(map(self.root.glob, _NOTES)):
            if _is_old(each):
                remove(each)
        sweep(self.data.glob(FILLING))
        sweep(self.root.glob(f"logs/*/*/{OF_TORCHRUN}*"))
        sweep_scratch()


@dataclass(frozen=True, kw_only=True)
class HeldHome:
    """A home while a command works in it: others may delete it, and nobody may make it anew."""

    home: Home
    descriptor: int
    """Of its folder. As long as it is open no other folder has the same number."""

    @property
    def gone(self) -> bool:
        """Whether it was deleted, even in part, moved, or replaced by one of the same name."""
        try:
            there = os.path.samestat(self.home.root.stat(), os.fstat(self.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return True
        return not (there and self.home.checkpoints.is_dir())

    def raise_if_gone(self) -> None:
        """HomeGoneError if it is; called at every sign of life of what trains."""
        if self.gone:
            raise HomeGoneError(
                f"`home` {self.home.root}: it was deleted or moved while the command ran; put it "
                "back to go on, or give the command again to begin anew"
            )

    def unmake(self, made: Sequence[Path], *, logs: Path) -> None:
        """Remove the folders that were ``made`` and ``logs``, if that is all and nobody else's."""
        with suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no other command is here
            within = sorted(self.home.root.absolute().rglob("*"), reverse=True)
            files = [path for path in within if not path.is_dir()]
            if all(file.parent == logs for file in files):
                for file in files:
                    file.unlink()
                for folder in (*(path for path in within if path.is_dir()), *made):
                    folder.rmdir()


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False  # it has got its name


@dataclass(frozen=True, kw_only=True)
class Places:
    """A home with the Optuna storage and the MLflow tracking that go with it."""

    home: Home
    storage_url: str
    tracking_uri: str | None
    """None: nothing is tracked."""

    @classmethod
    def of(cls, home: Home, *, storage: str | None, tracking_uri: str | None) -> "Places":
        """What was named by flag or environment, else the databases in ``home``."""
        return cls(
            home=home,
            storage_url=storage or home.optuna_url,
            tracking_uri=resolve_tracking_uri(home.root, tracking_uri),
        )

    @property
    def ui_command(self) -> str | None:
        """How to look at the tracked runs: a command, or a server's address."""
        if self.tracking_uri is None:
            return None
        return ui_command(self.tracking_uri, mlflow=_program("mlflow"))

    def command(self, *words: str, tracking: bool = False) -> str:
        """A knee-tune command on the same places, to be typed in this folder; without passwords."""
        options = ["--home", str(self.home.root)]
        if self.storage_url != self.home.optuna_url:
            options += ["--storage", shown_url(self.storage_url)]
        if tracking and self.tracking_uri != local_store(self.home.root):
            options += ["--tracking-uri", shown_url(str(self.tracking_uri))]
        return shlex.join([_program("knee-tune"), *words, *options])


def _program(name: str) -> str:
    """What to type for a program of this environment: a path, unless the PATH leads to it."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found and Path(found) == beside):
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
