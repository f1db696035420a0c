"""Commands as people give them: real processes, with nobody's settings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def environment(**extra: str) -> dict[str, str]:
    """Ours, without anybody's studies and servers."""
    settings = ("KNEE_TUNE_", "OPTUNA_", "MLFLOW_", "FORCE_COLOR", "CLICOLOR_FORCE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "160"} | extra


def knee_tune(
    *arguments: str | Path, expect: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return knee_tune_in(REPOSITORY, *arguments, expect=expect, **extra)


def knee_tune_in(
    folder: Path, *arguments: str | Path, expect: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a working folder."""
    done = subprocess.run(
        [sys.executable, "-m", "knee_tune", *map(str, arguments)],
        cwd=folder,
        env=environment(**{"PYTHONPATH": str(REPOSITORY)} | extra),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@contextmanager
def running(
    *arguments: str | Path, until: str
) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A command that has just printed ``until``, and all its descendants."""
    process = subprocess.Popen(
        [sys.executable, "-m", "knee_tune", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    family: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if until in line:
                break
        else:
            pytest.fail("".join(seen))
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, family
    finally:
        process.kill()
        process.wait()
        for member in family:
            if member.is_running():
                member.kill()
