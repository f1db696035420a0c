"""``run --total-runs`` as people use it: killed amid its race, continued, and done."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.command_line import drive_here, knee_tune_here, running

COMMAND = (
    *("run", "--task", "digits", "--preset", "quick", "--study-name", "race"),
    *("--total-runs", "9", "--set", "recipe.epochs=4", "--set", "recipe.seed_lr=0.002"),
    *("--set", "space.seed_lr={values: [0.05]}", "--set", "space.explore_fraction={values: [0.5]}"),
    *("--tracking-uri", "none"),
)
"""Two points, of which the default's seed LR is far too small; whole runs have 200 steps."""


@pytest.mark.timeout(400)
def test_a_killed_race_goes_on_and_ends_with_a_winner(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running(*COMMAND, "--home", home, until="(1 of 2): step 100/200") as (process, _):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)

    again = drive_here(*COMMAND, "--home", home).stdout
    assert "1,800 steps in all, " in again
    assert "race with 3 fresh seeds (1000001 to 1000003)" in again
    assert "seed LR 0.05, explore 50% wins, +" in again
    assert " points from the second, seed LR 0.002, explore 50% (the others are behind)" in again
    assert "\nconfirmed: better than the default; 3 seeds make wide intervals" in again

    best = json.loads(knee_tune_here("best", "--json", "--home", home).stdout)
    assert (best["seed_lr"], best["confirmed"]) == (0.05, "yes")
    report = knee_tune_here("report", "--format", "md", "--out", "-", "--home", home).stdout
    assert "until they were clearly behind" in report
