"""Where a study comes from: who ran which version of what. As tags for ``StudyStarted``."""

import getpass
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from knee_tune import __version__

LIBRARIES = ("torch", "numpy", "optuna", "mlflow", "fairseq-fixed")


def provenance() -> dict[str, str]:
    """MLflow's tags for user, source and commit, and ``version.<library>``; imports none of them.

    Takes some 20 ms. What cannot be found out (no git, no user name) is left out.
    """
    tags = {
        "mlflow.source.name": "knee-tune",
        "mlflow.source.type": "LOCAL",
        "version.knee-tune": __version__,
        "version.python": platform.python_version(),
        "platform": platform.platform(),
    }
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = version(library)
        except PackageNotFoundError:
            continue
    with suppress(OSError, KeyError):  # a container's user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
