"""The trunk store: what it holds, what it drops when it is full, what it leaves alone."""

import json
import math
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from knee_tune.plans.plan import checkpoint_path
from knee_tune.runs.trunks import TrunkCheckpoint, TrunkStore, to_drop
from tests.pretend_ranks import knee_plan, save_state

HUGE = 1_000_000


def checkpoints(
    *steps: int, trunk: str = "a", idle: int = 0, in_use: bool = False
) -> list[TrunkCheckpoint]:
    """Checkpoints of one byte each."""
    return [
        TrunkCheckpoint(trunk=trunk, step=step, size=1, idle=idle, in_use=in_use) for step in steps
    ]


def dropped(given: Sequence[TrunkCheckpoint], *, limit: int) -> list[tuple[str, int]]:
    return [(checkpoint.trunk, checkpoint.step) for checkpoint in to_drop(given, limit=limit)]


def test_nothing_is_dropped_while_there_is_room() -> None:
    assert to_drop(checkpoints(10, 20, 30), limit=3) == []
    assert to_drop([], limit=0) == []


def test_the_smallest_gap_goes_first() -> None:
    """Gaps 30, 5, 25, 40; after 35 is gone, the one below 60 is 30."""
    assert dropped(checkpoints(100, 30, 60, 35), limit=3) == [("a", 35)]
    assert dropped(checkpoints(100, 30, 60, 35), limit=2) == [("a", 35), ("a", 30)]
    assert dropped(checkpoints(100, 30, 60, 35), limit=1) == [("a", 35), ("a", 30), ("a", 100)]
    assert dropped(checkpoints(100, 30, 60, 35), limit=0)[-1] == ("a", 60)


def test_a_trunk_that_was_not_used_for_long_goes_first() -> None:
    """Gap 30 after 8 runs weighs 30 / 3 = 10: less than 11 of the trunk in use, more than 9."""
    idle = checkpoints(30, trunk="old", idle=8)
    assert math.isclose(30 / math.sqrt(1 + 8), 10)
    assert dropped(idle + checkpoints(11, trunk="new"), limit=1) == [("old", 30)]
    assert dropped(idle + checkpoints(9, trunk="new"), limit=1) == [("new", 9)]


def test_gaps_do_not_reach_across_trunks() -> None:
    assert dropped(checkpoints(50, trunk="a") + checkpoints(51, trunk="b"), limit=1) == [("a", 50)]


def test_big_checkpoints_count_for_what_they_take() -> None:
    big = TrunkCheckpoint(trunk="a", step=10, size=90, idle=0)
    assert to_drop([big, *checkpoints(30, trunk="b")], limit=50) == [big]


def test_a_trunk_that_is_being_trained_is_left_alone() -> None:
    working = checkpoints(1, 2, 3, trunk="a", in_use=True)
    assert dropped(working + checkpoints(40, 50, trunk="b"), limit=4) == [("b", 50)]
    assert dropped(working + checkpoints(40, 50, trunk="b"), limit=0) == [("b", 50), ("b", 40)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two trunks with checkpoints of 100 bytes at 10, 20, 30; LR 0.1 was used last."""
    store = TrunkStore(tmp_path / "trunks", limit=HUGE)
    for seed_lr in (0.2, 0.1):
        plan = knee_plan(tmp_path, knee=30, seed_lr=seed_lr)
        assert plan.trunk is not None
        store.use(plan)
        for step in plan.trunk.checkpoint_steps:
            save_state(plan.trunk.folder, step, size=100)
    return tmp_path


def store_at(home: Path, *, limit: int = HUGE) -> TrunkStore:
    return TrunkStore(home / "trunks", limit=limit)


def held(home: Path) -> dict[str, list[int]]:
    """The steps of every trunk."""
    return {entry.key: list(entry.sizes) for entry in store_at(home).entries()}


def test_what_a_store_holds(home: Path) -> None:
    last, first = store_at(home).entries()
    assert (last.key, first.key) == ("digits-0.1", "digits-0.2")
    assert last.sizes == first.sizes == {10: 100, 20: 100, 30: 100}
    assert last.size == 300
    assert last.note is not None
    assert first.note is not None
    assert (last.note.seed_lr, last.note.seed, last.note.use) == (0.1, 0, 2)
    assert (first.note.task, first.note.world_size, first.note.use) == ("digits", 1, 1)
    assert store_at(home).note.uses == 2
    assert store_at(home).note.limit == HUGE


def test_an_empty_store_touches_nothing(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    assert store.entries() == []
    assert store.clear().removed == ()
    assert not (tmp_path / "trunks").exists()


def test_using_a_trunk_again_moves_its_mark(home: Path) -> None:
    before = {entry.key: entry.note for entry in store_at(home).entries()}
    store_at(home).use(knee_plan(home, knee=10, seed_lr=0.2))
    after = {entry.key: entry.note for entry in store_at(home).entries()}
    assert next(iter(after)) == "digits-0.2"
    old, new = before["digits-0.2"], after["digits-0.2"]
    assert old is not None
    assert new is not None
    assert (old.use, new.use) == (1, 3)
    assert new.made == old.made < new.used


def test_a_full_store_drops_by_gap_and_age(home: Path) -> None:
    """All gaps are 10: the trunk that was used before the other one goes first."""
    assert store_at(home, limit=600).shrink() == 0
    assert store_at(home, limit=599).shrink() == 1
    assert held(home) == {"digits-0.1": [10, 20, 30], "digits-0.2": [20, 30]}
    assert store_at(home, limit=400).shrink() == 1
    assert held(home) == {"digits-0.1": [10, 20, 30], "digits-0.2": [20]}
    assert store_at(home, limit=0).shrink() == 4
    assert held(home) == {"digits-0.1": [], "digits-0.2": []}


def test_shrinking_leaves_a_trunk_that_is_being_trained(home: Path) -> None:
    with store_at(home).lock("digits-0.2"):
        assert store_at(home, limit=250).shrink() == 3
        assert held(home) == {"digits-0.1": [], "digits-0.2": [10, 20, 30]}
    assert store_at(home, limit=250).shrink() == 1
    store_at(home).lock("digits-0.2").acquire(blocking=False)  # it holds no lock afterwards


def test_a_store_lives_with_what_it_did_not_write(home: Path) -> None:
    """Drafts, lost and damaged notes, remains of a driver that was killed while it deleted."""
    trunks = home / "trunks"
    (trunks / "digits-0.1" / "trunk.json").write_text("{")
    (trunks / "digits-0.2" / "trunk.json").unlink()
    (trunks / "digits-0.2" / ".draft").mkdir()
    (trunks / "digits-0.2" / "step-fifty").mkdir()
    (trunks / "store.json").write_text("[]")
    (trunks / "stray.txt").write_text("")
    remains = trunks / ".trash" / "half-deleted"
    remains.mkdir(parents=True)
    assert held(home) == {"digits-0.1": [10, 20, 30], "digits-0.2": [10, 20, 30]}
    assert [entry.note for entry in store_at(home).entries()] == [None, None]
    assert store_at(home, limit=100).shrink() == 5
    assert not remains.exists()


def test_checkpoints_may_vanish_at_any_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: between the look at the store and the deletion."""
    store = store_at(home, limit=0)
    entries = store.entries()
    shutil.rmtree(checkpoint_path(home / "trunks" / "digits-0.1", step=20))
    shutil.rmtree(home / "trunks" / "digits-0.2")
    monkeypatch.setattr(store, "entries", lambda: entries)
    store.shrink()
    assert held(home) == {"digits-0.1": []}
    store.clear()
    assert held(home) == {}


def test_clearing_everything(home: Path) -> None:
    cleared = store_at(home).clear()
    assert [entry.size for entry in cleared.removed] == [300, 300]
    assert held(home) == {}
    assert store_at(home).note.uses == 2  # ages go on


def test_clearing_by_task_and_age(home: Path) -> None:
    path = home / "trunks" / "digits-0.2" / "trunk.json"
    used = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"used": used}))
    store = store_at(home)
    assert store.clear(task="iwslt").removed == ()
    assert store.clear(older_than=timedelta(days=4)).removed == ()
    assert [entry.key for entry in store.clear(older_than=timedelta(days=2)).removed] == [
        "digits-0.2"
    ]
    assert [entry.key for entry in store.clear(task="digits").removed] == ["digits-0.1"]


def test_without_its_note_a_trunk_is_as_old_as_its_folder(home: Path) -> None:
    folder = home / "trunks" / "digits-0.2"
    (folder / "trunk.json").unlink()
    os.utime(folder, (0, 0))
    cleared = store_at(home).clear(older_than=timedelta(days=30))
    assert [entry.key for entry in cleared.removed] == ["digits-0.2"]


def test_clearing_leaves_and_names_a_trunk_that_is_being_trained(home: Path) -> None:
    with store_at(home).lock("digits-0.1"):
        cleared = store_at(home).clear()
    assert [entry.key for entry in cleared.in_use] == ["digits-0.1"]
    assert held(home) == {"digits-0.1": [10, 20, 30]}
