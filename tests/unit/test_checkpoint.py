"""A checkpoint is there whole or not at all, and nothing in it can run code."""

import pickletools
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from knee_tune.planning.plan import Placement, TrainPlan
from knee_tune.schedules import Cosine
from knee_tune.training import checkpoint
from knee_tune.training.checkpoint import (
    KEPT,
    load_newest_checkpoint,
    run_fingerprint,
    save_checkpoint,
    save_weights,
)

RUN = "a run"


def state(number: float) -> dict[str, Any]:
    return {"model": {"weight": torch.full((50,), number)}, "best": number, "names": ["a", "b"]}


def newest(folder: Path) -> tuple[int, float] | None:
    """Step and number of the newest checkpoint."""
    found = load_newest_checkpoint(folder, run=RUN)
    if found is None:
        return None
    step, saved = found
    assert torch.equal(saved["model"]["weight"], torch.full((50,), saved["best"]))
    return step, saved["best"]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path / "new", run=RUN, step=7, state={"optimizer": optimizer.state_dict()})

    found = load_newest_checkpoint(tmp_path / "new", run=RUN)

    assert found is not None
    assert found[0] == 7
    loaded, saved = found[1]["optimizer"], optimizer.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    for index, values in saved["state"].items():
        for name, value in values.items():
            assert torch.equal(loaded["state"][index][name], value)


def test_another_runs_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, run=RUN, step=5, state=state(5))
    save_checkpoint(tmp_path, run="another run", step=10, state=state(10))

    with pytest.warns(UserWarning, match="not resuming from .*step-00000010"):
        assert newest(tmp_path) == (5, 5)


def test_where_a_run_is_does_not_tell_it_apart(tmp_path: Path) -> None:
    plan = TrainPlan(
        task="digits",
        recipe={"batch_size": 16, "label_noise": 0.2},
        seed=1,
        data_dir=tmp_path,
        log_dir=tmp_path,
        schedule=Cosine(seed_lr=0.1, total_steps=10),
        steps_per_evaluation=5,
        checkpoint_dir=tmp_path,
    )

    def fingerprint(**changes: Any) -> str:
        return run_fingerprint(plan.model_copy(update=changes))

    again = TrainPlan.model_validate_json(plan.model_dump_json())
    assert run_fingerprint(again) == run_fingerprint(plan)
    elsewhere = {"data_dir": tmp_path / "moved", "log_dir": tmp_path / "moved"}
    assert fingerprint(**elsewhere) == run_fingerprint(plan)
    assert fingerprint(placement=Placement(device="cuda")) == run_fingerprint(plan)
    others = {
        fingerprint(seed=2),
        fingerprint(placement=Placement(world_size=2)),
        fingerprint(recipe={"batch_size": 16, "label_noise": 0.1}),
        fingerprint(schedule=Cosine(seed_lr=0.2, total_steps=10)),
        run_fingerprint(plan),
    }
    assert len(others) == 5


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "missing") is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 99_999_999, 15):
        save_checkpoint(tmp_path, run=RUN, step=step, state=state(step))
        if step == 10:
            assert newest(tmp_path) == (10, 10)

    assert KEPT == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-99999999"]


def test_a_run_killed_while_writing_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))

    class KilledError(Exception):
        pass

    def killed(_: Path) -> None:
        raise KilledError

    for part in ("_sha256", "_sync"):  # before the manifest, and before the rename
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, part, killed)
            with pytest.raises(KilledError):
                save_checkpoint(tmp_path, run=RUN, step=2, state=state(2))
        assert (tmp_path / ".draft").exists()
        assert newest(tmp_path) == (1, 1)

    save_checkpoint(tmp_path, run=RUN, step=2, state=state(2))
    assert newest(tmp_path) == (2, 2)
    assert not (tmp_path / ".draft").exists()


def truncate(folder: Path) -> None:
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def other_state(folder: Path) -> None:
    shutil.copy(folder.parent / "step-00000001" / "state.pt", folder)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "a flipped bit": flip_a_bit,
    "another state": other_state,
    "no state": lambda folder: (folder / "state.pt").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "manifest of zeros": lambda folder: (folder / "manifest.json").write_bytes(bytes(80)),
    "not a manifest": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "manifest without checksum": lambda folder: (folder / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_skipped(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))
    damage(save_checkpoint(tmp_path, run=RUN, step=2, state=state(2)))

    with pytest.warns(UserWarning, match="skipping damaged checkpoint .*step-00000002"):
        assert newest(tmp_path) == (1, 1)

    save_checkpoint(tmp_path, run=RUN, step=2, state=state(2.5))
    assert newest(tmp_path) == (2, 2.5)


def test_all_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save_checkpoint(tmp_path, run=RUN, step=step, state=state(step)))

    with pytest.warns(UserWarning, match="skipping") as warnings:
        assert newest(tmp_path) is None
    assert len(warnings) == 2


class Attack:
    """Unpickling it would leave a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_loading_never_runs_code(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))
    save_checkpoint(tmp_path, run=RUN, step=2, state={"best": Attack(tmp_path / "attacked")})

    with pytest.warns(UserWarning, match="skipping"):
        assert newest(tmp_path) == (1, 1)
    assert not (tmp_path / "attacked").exists()


def test_a_saved_state_names_no_classes_but_tensors(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))
    with zipfile.ZipFile(folder / "state.pt") as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        content = archive.read(pickled)

    named = {
        argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"
    }
    assert named <= {
        "torch._utils _rebuild_tensor_v2",
        "torch FloatStorage",
        "torch LongStorage",
        "collections OrderedDict",
    }


def test_weights_are_safetensors_and_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = tmp_path / "run" / "weights.safetensors", nn.BatchNorm1d(3)
    save_weights(path, model)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_sync", _disk_full)
        with pytest.raises(OSError, match="disk"):
            save_weights(path, nn.Linear(3, 3))

    loaded = load_file(path)
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def _disk_full(_: Path) -> None:
    raise OSError("disk full")
