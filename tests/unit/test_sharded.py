"""Checkpoints that two ranks write together, each what it has of the model."""

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pytest
import torch

from knee_tune.errors import UserError
from knee_tune.plans.identity import trunk_key
from knee_tune.plans.plan import TaskFacts, checkpoint_paths
from knee_tune.schedules import Knee
from knee_tune.training import checkpoint
from knee_tune.training.checkpoint import (
    find_start,
    load_checkpoint,
    run_fingerprint,
    save_checkpoint,
    sweep_drafts,
)
from knee_tune.training.sharded import check_mesh
from knee_tune.workers.group import Group
from tests.pretend_ranks import knee_plan

T = TypeVar("T")

RUN = "a run"


class Rank(Group):
    """One of two ranks that are threads."""

    def __init__(self, rank: int, told: list[Any], barrier: Barrier) -> None:
        super().__init__(rank=rank, world_size=2)
        object.__setattr__(self, "told", told)
        object.__setattr__(self, "barrier", barrier)

    def gather(self, value: T) -> list[T]:
        self.__dict__["told"][self.rank] = value
        self.__dict__["barrier"].wait()
        told = list(self.__dict__["told"])
        self.__dict__["barrier"].wait()
        return told

    def agree(self, value: int) -> int:
        return self.gather(value)[0]


def on_both(act: Callable[[Group], T]) -> list[T]:
    """What two ranks come to; the error of rank 0 if it has one."""
    told, barrier = [None, None], Barrier(2, timeout=10)

    def one(rank: int) -> T:
        try:
            return act(Rank(rank, told, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as threads:
        return [each.result() for each in [threads.submit(one, rank) for rank in range(2)]]


def save(folder: Path, *, step: int = 10, run: str = RUN) -> Path:
    def act(group: Group) -> Path:
        state = {"part": torch.full((3,), float(group.rank)), "of": group.rank}
        return save_checkpoint(folder, run=run, step=step, state=state, group=group)

    return on_both(act)[0]


def test_every_rank_saves_and_loads_its_own(tmp_path: Path) -> None:
    folder = save(tmp_path)
    files = {"state.pt", "state-rank-1.pt", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == files
    for rank in range(2):
        found = load_checkpoint(folder, run=RUN, rank=rank).state
        assert found["part"].tolist() == 3 * [float(rank)]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def take_rank_0s(file: Path) -> None:
    file.write_bytes(file.with_name("state.pt").read_bytes())


@pytest.mark.parametrize("damage", [truncate, take_rank_0s, Path.unlink])
def test_a_run_begins_before_a_shard_that_is_no_good(
    damage: Callable[[Path], Any], tmp_path: Path
) -> None:
    plan = knee_plan(tmp_path, knee=50)
    plan.checkpoint_dir.parent.mkdir()
    save(plan.checkpoint_dir, step=10, run=run_fingerprint(plan))
    newest = save(plan.checkpoint_dir, step=20, run=run_fingerprint(plan))
    damage(newest / "state-rank-1.pt")
    said: list[str] = []
    found = on_both(lambda group: find_start(plan, None, group, said.append))
    assert [(each.step, each.state["of"]) for each in found if each] == [(10, 0), (10, 1)]
    assert len(said) == 1
    assert said[0].startswith(f"{newest}: no good, starting from an earlier checkpoint: ")
    assert "state-rank-1.pt" in said[0]
    assert not newest.exists(), "the run saves that step itself"


def test_what_is_killed_before_the_manifest_leaves_nothing_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rank, "gather", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path)
    assert len([*tmp_path.iterdir()]) == 2, "both have written what they have"
    assert checkpoint_paths(tmp_path) == []
    sweep_drafts(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_disk_that_is_full_for_one_rank_is_so_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: dict[str, Any], *, durable: bool) -> str:
        path.touch()
        if content["state"]["of"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "a checksum"

    monkeypatch.setattr(checkpoint, "_write_state", full)
    with pytest.raises(OSError, match=r"No space left on device \(rank 1\): a checkpoint needs"):
        save(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_ranks_that_share_no_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather = Rank.gather

    def elsewhere(group: Rank, value: Any) -> Any:
        if not group.leads:
            value[0].unlink()
        return gather(group, value)

    monkeypatch.setattr(Rank, "gather", elsewhere)
    with pytest.raises(UserError, match="rank 0 does not find what rank 1 wrote here"):
        save(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_mesh_tells_runs_and_trunks_apart(tmp_path: Path) -> None:
    plan = knee_plan(tmp_path, knee=50)
    facts = TaskFacts(steps_per_epoch=5, data_fingerprint="d", parameters=1, examples={})
    meshes = [facts.model_copy(update={"mesh": mesh}) for mesh in ((), (4,), (2, 2))]
    assert len({run_fingerprint(plan.model_copy(update={"facts": each})) for each in meshes}) == 3
    knee = Knee(seed_lr=0.1, total_steps=100, explore_steps=50)
    keys = {trunk_key(plan, each, schedule=knee, steps_per_evaluation=5) for each in meshes}
    assert len(keys) == 3
    assert "mesh" not in facts.model_dump(), "what is not sharded is written as it always was"
    with pytest.raises(UserError, match="sharded over a mesh of 4, and was over 2x2"):
        check_mesh((4,), meshes[2])
