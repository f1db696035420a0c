"""Commands as people give them, with nobody's settings: as real processes, or in this one."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import psutil
import pytest

from knee_tune.cli import main
from tests import waiting, warm
from tests.fake_runner import ranks_here

REPOSITORY = Path(__file__).resolve().parents[1]

QUICK = ("run", "--task", "digits", "--preset", "quick")
TINY = (*QUICK, "--nproc", "2", "--sampler", "random", "--set", "recipe.batch_size=16")
"""Studies that take seconds, in two ranks the second."""


def environment(**extra: str) -> dict[str, str]:
    """Ours, without anybody's studies and servers."""
    settings = ("KNEE_TUNE_", "OPTUNA_", "MLFLOW_", "FORCE_COLOR", "CLICOLOR_FORCE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return kept | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "160"} | extra


def knee_tune(
    *arguments: str | Path, expect: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a process of its own that begins warm."""
    done = warm.run(
        "tests.warm:command",
        *map(str, arguments),
        env=environment(**extra),
        timeout=waiting.COMMAND,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def knee_tune_cold(
    *arguments: str | Path, expect: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process that imports what it needs, as people do."""
    done = subprocess.run(
        [sys.executable, "-m", "knee_tune", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=waiting.COMMAND,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def knee_tune_here(
    *arguments: str | Path, expect: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process, and train in it too.

    A process of its own imports torch, and so does the one that its ranks are forked from: that
    takes much longer than most commands. This is for what processes have no part in.
    """
    with ranks_here():
        return drive_here(*arguments, expect=expect, **extra)


def drive_here(
    *arguments: str | Path, expect: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process, which drives real ranks."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["knee-tune", *map(str, arguments)]),
        mock.patch.dict(os.environ, environment(**extra), clear=True),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert end.value.code == expect, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(arguments, expect, out.getvalue(), err.getvalue())


def complains(*arguments: str | Path, said: tuple[str, ...], **extra: str) -> str:
    """Exit code 2 and one line on standard error, which it is, without a traceback."""
    done = knee_tune_here(*arguments, expect=2, **extra)
    (line,) = done.stderr.splitlines()
    assert line.startswith("knee-tune: ")
    for word in said:
        assert word in line
    return line


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
