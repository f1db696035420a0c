"""``knee-tune horizons`` from the command line: studies that share trunks, and one page."""

import json
from pathlib import Path

from tests.command_line import complains, knee_tune_here

ASKED = (
    *("horizons", "--task", "digits", "--preset", "quick", "--budgets", "2,4", "--trials", "3"),
    *("--set", "recipe.batch_size=64", "--tracking-uri", "none", "--json"),
)


def test_longer_horizons_go_on_from_the_trunks_of_shorter_ones(tmp_path: Path) -> None:
    home = tmp_path / "home"
    said = json.loads(knee_tune_here(*ASKED, "--home", home).stdout)
    shorter, longer = said["horizons"]
    assert 2 * shorter["total_steps"] == longer["total_steps"]
    assert longer["trained"] < longer["independent"]
    assert said["exponent"] is None
    assert Path(said["report"]).is_file()

    again = json.loads(knee_tune_here(*ASKED, "--home", home).stdout)
    assert again == said  # nothing was trained anew

    status = knee_tune_here("status", "horizons-digits-quick-4ep", "--home", home).stdout
    assert "3 complete" in status


def test_budgets_are_named() -> None:
    complains("horizons", "--task", "digits", "--budgets", "4,2", said=("must ascend",))
