"""Where a run starts, as rank 0 of two sees it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knee_tune.errors import UserError
from knee_tune.training.checkpoint import find_start, run_fingerprint, save_checkpoint
from knee_tune.workers.group import Group
from tests.pretend_ranks import knee_plan


class Pair(Group):
    """Rank 0 of two ranks; the other one does not find ``missing``, after something happened."""

    def __init__(self, missing: Path, *, happens: Callable[[], object]) -> None:
        super().__init__(world_size=2)
        object.__setattr__(self, "looks", iter([None, (missing, happens)]))

    def gather(self, value: Any) -> list[Any]:
        missing = next(self.__dict__["looks"], None)
        if missing is None:
            return [value, value]
        folder, happens = missing
        happens()
        return [value, (f"no such file: {folder}", True, False)]

    def agree(self, value: int) -> int:
        return value


def test_a_checkpoint_that_one_rank_does_not_find_is_on_no_shared_file_system(
    tmp_path: Path,
) -> None:
    plan = knee_plan(tmp_path, knee=50)
    plan.checkpoint_dir.parent.mkdir()
    run = run_fingerprint(plan)
    folder = save_checkpoint(plan.checkpoint_dir, run=run, step=10, state={})
    group = Pair(folder, happens=lambda: None)
    with pytest.raises(UserError, match="put it on a file system that all their machines share"):
        find_start(plan, None, group, print)


def test_a_checkpoint_that_is_dropped_while_ranks_look_is_passed_over(tmp_path: Path) -> None:
    plan = knee_plan(tmp_path, knee=50)
    plan.checkpoint_dir.parent.mkdir()
    run = run_fingerprint(plan)
    save_checkpoint(plan.checkpoint_dir, run=run, step=10, state={"at": 10})
    dropped = save_checkpoint(plan.checkpoint_dir, run=run, step=20, state={"at": 20})
    group = Pair(dropped, happens=lambda: shutil.rmtree(dropped))
    said: list[str] = []
    found = find_start(plan, None, group, said.append)
    assert found is not None
    assert found.state == {"at": 10}
    assert [line.partition(":")[0] for line in said] == [str(dropped)]
