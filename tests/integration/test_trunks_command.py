"""``knee-tune trunks`` as people type it."""

import json
from pathlib import Path

import pytest

from knee_tune.commands.look import size_of_cache
from knee_tune.errors import UserError
from knee_tune.runs.trunks import TrunkStore
from tests.command_line import knee_tune, knee_tune_here
from tests.pretend_ranks import knee_plan, save_state


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one trunk of two checkpoints."""
    plan = knee_plan(tmp_path, knee=20)
    assert plan.trunk is not None
    TrunkStore(tmp_path / "trunks", limit=2_000_000).use(plan)
    for step in plan.trunk.checkpoint_steps:
        save_state(plan.trunk.folder, step, size=600_000)
    return tmp_path


def test_listing_trunks(home: Path) -> None:
    table = knee_tune("trunks", "list", "--home", home).stdout.splitlines()
    assert [line.split()[:9] for line in table[:-1]] == [
        ["task", "seed", "LR", "seed", "ranks", "checkpoints", "size", "last", "used"],
        ["digits", "0.1", "0", "1", "2", "(steps", "10", "to", "20)"],
    ]
    assert table[-1] == "1 trunk, 1.2MB of 2.0MB"
    told = json.loads(knee_tune_here("trunks", "list", "--json", "--home", home).stdout)
    assert (told["bytes"], told["limit_bytes"]) == (1_200_000, 2_000_000)
    (trunk,) = told["trunks"]
    assert (trunk["task"], trunk["seed_lr"], trunk["knots"]) == ("digits", 0.1, [10, 20])


def test_clearing_trunks(home: Path) -> None:
    kept = knee_tune_here("trunks", "clear", "--task", "iwslt", "--home", home).stdout
    assert kept == "0 trunks removed, 0B\n"
    with TrunkStore(home / "trunks", limit=0).lock("digits-0.1"):
        left = knee_tune_here("trunks", "clear", "--older-than", "0", "--home", home).stdout
    assert left.splitlines()[1:] == [
        "left, because a run is training it: digits, seed LR 0.1, seed 0"
    ]
    assert knee_tune_here("trunks", "clear", "--home", home).stdout == "1 trunk removed, 1.2MB\n"
    assert knee_tune_here("trunks", "list", "--home", home).stdout == "0 trunks, 0B of 2.0MB\n"


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    for command in ("list", "clear"):
        told = knee_tune_here("trunks", command, "--home", tmp_path / "none", expect=2).stderr
        assert told == (
            f"knee-tune: --home {tmp_path}/none: no such folder; name the one your studies are in\n"
        )
    run = ("run", "--task", "digits", "--home", tmp_path / "none")
    told = knee_tune_here(*run, expect=2, KNEE_TUNE_TRUNK_CACHE="much").stderr
    assert told.startswith("knee-tune: --trunk-cache much: not a size")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20_000_000_000), ("500MB", 500_000_000), ("1.5 GiB", 1_610_612_736), ("0", 0)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert size_of_cache(text) == size


@pytest.mark.parametrize("text", ["", "-1", "GB", "20XB", "nan", "inf", "1e400"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="not a size"):
        size_of_cache(text)
