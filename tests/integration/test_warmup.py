"""Warmup in a whole ``run``: as a share of the budget, and where it leaves too little of it."""

import json
from pathlib import Path

import pytest

from tests.command_line import QUICK, complains, knee_tune_here

FOUR_FRACTIONS = (
    *(*QUICK, "--study-name", "warm", "--sampler", "random", "--pruner", "none"),
    *("--trials", "9", "--set", "recipe.epochs=1", "--tracking-uri", "none"),
    *("--set", "space.seed_lr.values=[0.05]"),
    *("--set", "space.explore_fraction.values=[0.1, 0.2, 0.3, 0.5]"),
)
"""Of 50 steps; the seed LR is the recipe's own."""


def test_points_that_come_to_one_schedule_are_one_and_a_share_becomes_steps(tmp_path: Path) -> None:
    share = ("--set", "recipe.warmup=86%")
    said = knee_tune_here(*FOUR_FRACTIONS, *share, "--home", tmp_path).stdout
    assert "warmup: 86% of the budget (50 steps): 43 steps" in said
    assert "explore 20%, 30%, 50% are one schedule (43 of 50 steps are warmup)" in said
    assert "trained once, as 50%" in said
    assert "2 trials are every point of the search space" in said
    assert "warm: 2 complete" in said
    report = knee_tune_here("report", "warm", "--format", "md", "--out", "-", "--home", tmp_path)
    assert "    warmup_steps: 43\n" in report.stdout or "  warmup_steps: 43\n" in report.stdout

    steps = ("--set", "recipe.warmup_steps=43")  # what the study has kept
    assert (
        "2 of 2 trials done" in knee_tune_here(*FOUR_FRACTIONS, *steps, "--home", tmp_path).stdout
    )
    status = json.loads(knee_tune_here("status", "--json", "--home", tmp_path).stdout)
    assert status["counts"]["complete"] == 2


@pytest.mark.parametrize("steps", [50, 51])
def test_a_budget_that_is_all_warmup_is_refused(tmp_path: Path, steps: int) -> None:
    asked = ("--set", f"recipe.warmup_steps={steps}")
    said = (f"recipe.warmup_steps={steps}: the budget is 50 steps (recipe.epochs=1)",)
    complains(*FOUR_FRACTIONS, *asked, "--home", tmp_path / "home", said=said)
    assert not list(tmp_path.rglob("optuna.db"))


@pytest.mark.parametrize("share", ["100%", "5", "-5%", "5 %", "five%"])
def test_what_is_no_share_is_refused(tmp_path: Path, share: str) -> None:
    said = (f"recipe.warmup={share}", "must be")
    complains(*QUICK, "--set", f"recipe.warmup={share}", "--home", tmp_path / "home", said=said)


def test_steps_or_a_share_but_not_both(tmp_path: Path) -> None:
    asked = ("--set", "recipe.warmup=5%", "--set", "recipe.warmup_steps=5")
    complains(*QUICK, *asked, "--home", tmp_path / "home", said=("give one of them, not both",))
