"""A home is found again after it was moved, and cleaned of what killed commands left in it."""

from pathlib import Path

from knee_tune.app.home import Home
from knee_tune.distributed.torchrun import SCRATCH
from knee_tune.leftovers import scratch


def test_weights_are_where_they_were_noted_or_in_the_home_that_was_moved(tmp_path: Path) -> None:
    moved = Home(tmp_path / "moved")
    noted = tmp_path / "before" / "checkpoints" / "digits-1" / "weights.safetensors"
    assert moved.weights(str(noted)) == moved.checkpoints / "digits-1" / "weights.safetensors"
    noted.parent.mkdir(parents=True)
    noted.touch()
    assert moved.weights(str(noted)) == noted


def test_what_a_killed_launch_left_is_swept_and_what_one_works_in_is_not(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "study" / "trial-0000"
    left = logs / f"{SCRATCH}of-the-dead"
    left.mkdir(parents=True)
    with scratch(SCRATCH, within=logs) as (folder, _):
        assert not left.exists(), "the next launch there sweeps as well"
        left.mkdir()
        Home(tmp_path).sweep()
        assert not left.exists()
        assert folder.is_dir()
    assert list(logs.iterdir()) == []
