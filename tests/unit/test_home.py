"""A home is found again after it was moved."""

from pathlib import Path

from knee_tune.app.home import Home


def test_weights_are_where_they_were_noted_or_in_the_home_that_was_moved(tmp_path: Path) -> None:
    moved = Home(tmp_path / "moved")
    noted = tmp_path / "before" / "checkpoints" / "digits-1" / "weights.safetensors"
    assert moved.weights(str(noted)) == moved.checkpoints / "digits-1" / "weights.safetensors"
    noted.parent.mkdir(parents=True)
    noted.touch()
    assert moved.weights(str(noted)) == noted
