"""Pages as people see them: opened in headless Chromium, with all their scripts run."""

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

QUIET = (
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
"""It opens the page it was given and calls nobody else."""


class Browser:
    """Opens pages of servers on this machine."""

    def __init__(self, program: str, profile: Path) -> None:
        self._program, self._profile = program, profile

    def page(self, url: str, *options: str, patience: float = 10.0) -> str:
        """The document at ``url`` once its scripts are done, after ``patience`` (virtual) seconds.

        Virtual time runs ahead while nothing is loading, so that this takes as long as it must.
        """
        done = subprocess.run(
            [
                *(self._program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *QUIET,
                *(f"--user-data-dir={self._profile}", "--window-size=1400,2400"),
                *(f"--virtual-time-budget={1000 * patience:.0f}", *options, url),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout


def find_browser(profile: Path) -> Browser:
    """Chromium, whatever it is called here; the test is skipped where there is none."""
    programs = filter(None, map(shutil.which, BROWSERS))
    program = next(programs, None)
    if program is None:
        pytest.skip(f"no browser to look with (none of {', '.join(BROWSERS)})")
    return Browser(program, profile)
