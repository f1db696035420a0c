"""A checkpoint is there whole or not at all, and nothing in it can run code."""

import errno
import pickletools
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from knee_tune import files
from knee_tune.plans.plan import (
    Placement,
    TaskFacts,
    TrainPlan,
    checkpoint_paths,
    checkpoint_step,
    discard_checkpoints,
)
from knee_tune.schedules import Cosine
from knee_tune.training.checkpoint import (
    DamagedError,
    UnreadableError,
    load_checkpoint,
    run_fingerprint,
    save_checkpoint,
    save_weights,
    sweep_drafts,
    take_weights,
)

RUN = "a run"


def state(number: float) -> dict[str, Any]:
    return {"model": {"weight": torch.full((50,), number)}, "best": number, "names": ["a", "b"]}


def number(folder: Path) -> float:
    """The number in a checkpoint's state."""
    saved = load_checkpoint(folder, run=RUN).state
    assert torch.equal(saved["model"]["weight"], torch.full((50,), saved["best"]))
    return float(saved["best"])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    folder = save_checkpoint(
        tmp_path / "new", run=RUN, step=7, state={"optimizer": optimizer.state_dict()}
    )

    found = load_checkpoint(folder, run=RUN)

    assert (found.step, found.weights) == (7, None)
    loaded, saved = found.state["optimizer"], optimizer.state_dict()
    assert loaded["param_groups"] == saved["param_groups"]
    for index, values in saved["state"].items():
        for name, value in values.items():
            assert torch.equal(loaded["state"][index][name], value)


def test_kept_weights_travel_with_a_checkpoint(tmp_path: Path) -> None:
    """Later weights of the run, and the run that starts from here, leave those in it alone."""
    kept, model = tmp_path / "run" / "weights.safetensors", nn.Linear(3, 3)
    save_weights(kept, model)
    folder = save_checkpoint(tmp_path / "trunk", run=RUN, step=1, state=state(1), weights=kept)
    save_weights(kept, nn.Linear(3, 3))

    found = load_checkpoint(folder, run=RUN).weights
    assert found is not None
    branch = tmp_path / "branch" / "weights.safetensors"
    for _ in range(2):
        take_weights(branch, found)
        assert torch.equal(load_file(branch)["weight"], model.weight)
    save_weights(branch, nn.Linear(3, 3))
    assert load_checkpoint(folder, run=RUN)

    found.write_bytes(found.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"weights\.safetensors does not match its checksum"):
        load_checkpoint(folder, run=RUN)


def test_another_runs_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, run="another run", step=10, state=state(10))

    with pytest.raises(DamagedError, match="of another run"):
        load_checkpoint(folder, run=RUN)


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
    facts = TaskFacts(steps_per_epoch=5, data_fingerprint="d", parameters=1, examples={}, code="c")
    others = {
        fingerprint(seed=2),
        fingerprint(placement=Placement(world_size=2)),
        fingerprint(recipe={"batch_size": 16, "label_noise": 0.1}),
        fingerprint(schedule=Cosine(seed_lr=0.2, total_steps=10)),
        fingerprint(steps_per_evaluation=4),
        fingerprint(placement=Placement(device="cuda")),
        fingerprint(facts=facts),
        fingerprint(facts=facts.model_copy(update={"code": "d"})),
        fingerprint(facts=facts.model_copy(update={"cpu": "AVX2"})),
        run_fingerprint(plan),
    }
    assert len(others) == 10


def test_checkpoints_are_found_by_their_step(tmp_path: Path) -> None:
    steps = (5, 100_000_001, 99_999_999, 15)
    for step in steps:
        save_checkpoint(tmp_path, run=RUN, step=step, state=state(step))
    (tmp_path / "step-by-step").mkdir()

    assert [checkpoint_step(path) for path in checkpoint_paths(tmp_path)] == sorted(steps)[::-1]
    discard_checkpoints(tmp_path, keep=2)
    assert [number(path) for path in checkpoint_paths(tmp_path)] == [100_000_001, 99_999_999]
    assert checkpoint_paths(tmp_path / "missing") == []


def test_who_is_first_saves_a_step(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))

    assert save_checkpoint(tmp_path, run=RUN, step=1, state=state(1.5)) == folder
    assert number(folder) == 1
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on the size of a file is as good as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (10, 1000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))
    draft = folder.rename(tmp_path / ".draft-of-a-killed-run")
    assert checkpoint_paths(tmp_path) == []

    sweep_drafts(tmp_path, seconds=3600)  # it may be another's, who is still writing
    assert list(tmp_path.iterdir()) == [draft]
    sweep_drafts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def truncate(folder: Path) -> None:
    file = folder / "state.pt"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state.pt").write_bytes(content)


def other_state(folder: Path) -> None:
    shutil.copy(folder.parent / "step-00000001" / "state.pt", folder)


def other_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step-00000001", folder)


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
    "another step": other_step,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_no_good(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    sound = save_checkpoint(tmp_path, run=RUN, step=1, state=state(1))
    damaged = save_checkpoint(tmp_path, run=RUN, step=2, state=state(2))
    damage(damaged)

    with pytest.raises(DamagedError, match=r"."):
        load_checkpoint(damaged, run=RUN)
    assert number(sound) == 1


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
    ids=["Python's", "torch's"],
)
def test_memory_that_runs_out_says_nothing_of_a_checkpoint(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tmp_path, run=RUN, step=2, state=state(2))
    monkeypatch.setattr(torch, "load", failing(error))
    with pytest.raises(type(error)):
        load_checkpoint(folder, run=RUN)


def test_a_disk_that_does_not_answer_is_told_from_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tmp_path, run=RUN, step=2, state=state(2))
    monkeypatch.setattr(torch, "load", failing(OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(UnreadableError, match="Stale file handle"):
        load_checkpoint(folder, run=RUN)


def failing(error: Exception) -> Callable[..., Any]:
    def load(*_: Any, **__: Any) -> None:
        raise error

    return load


class Attack:
    """Unpickling it would leave a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_loading_never_runs_code(tmp_path: Path) -> None:
    attack = {"best": Attack(tmp_path / "attacked")}
    folder = save_checkpoint(tmp_path, run=RUN, step=2, state=attack)

    with pytest.raises(DamagedError, match="Weights only load failed"):
        load_checkpoint(folder, run=RUN)
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
        patch.setattr(files, "_sync", _disk_full)
        with pytest.raises(OSError, match="disk"):
            save_weights(path, nn.Linear(3, 3))

    loaded = load_file(path)
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def _disk_full(_: Path) -> None:
    raise OSError("disk full")
