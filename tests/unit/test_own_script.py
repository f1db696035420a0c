"""A script's loop: batches that begin anywhere, states that can be saved, a plain run."""

import copy
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

import knee_tune
from knee_tune.errors import UserError
from knee_tune.schedules import Knee
from knee_tune.scripts.batches import batches_after
from knee_tune.scripts.data import fingerprint_of
from knee_tune.scripts.imports import imports_of, installed_imports
from knee_tune.scripts.recipe import subject_of
from knee_tune.scripts.state import check_state, generators, pack, set_generators, unpack


class Noisy(Dataset[Tensor]):
    """Ten numbers, with noise of the global generator."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(float(index)) + torch.rand(())

    def __len__(self) -> int:
        return 10


def taken(loader: DataLoader[Any], *, after: int, count: int, rank: int = 0) -> list[list[float]]:
    batches = batches_after(loader, after, seed=1, rank=rank)
    return [batch.tolist() for batch in islice(batches, count)]


def test_batches_begin_anywhere() -> None:
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    whole = taken(loader, after=0, count=8)
    assert taken(loader, after=5, count=3) == whole[5:]
    assert whole[:3] != whole[3:6], "another epoch, another order"


def test_batches_of_worker_processes_are_the_same() -> None:
    alone = DataLoader(Noisy(), batch_size=4, shuffle=True)
    helped = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2)
    assert taken(helped, after=2, count=3) == taken(alone, after=2, count=3)


def test_samplers_within_samplers_are_drawn_from_the_epoch() -> None:
    class Shard(BatchSampler):
        """Every second batch of another sampler, which holds the one that draws."""

        def __init__(self, whole: BatchSampler) -> None:
            self.batch_sampler = whole

        def __iter__(self) -> Iterator[list[int]]:
            return islice(iter(self.batch_sampler), 0, None, 2)

        def __len__(self) -> int:
            return len(self.batch_sampler) // 2

    drawn = RandomSampler(range(8), generator=torch.Generator())
    loader = DataLoader(Noisy(), batch_sampler=Shard(BatchSampler(drawn, 2, drop_last=True)))
    whole = taken(loader, after=0, count=4)
    assert taken(loader, after=3, count=1) == whole[3:]


def test_ranks_draw_noise_of_their_own() -> None:
    loader = DataLoader(Noisy(), batch_size=10)
    (one,), (other,) = (taken(loader, after=0, count=1, rank=rank) for rank in (0, 1))
    assert [int(each) for each in one] == [int(each) for each in other]
    assert one != other


def test_the_scripts_generators_do_not_notice_its_batches() -> None:
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    torch.manual_seed(7)
    taken(loader, after=0, count=5)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_a_stream_cannot_be_begun_in_its_middle() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    with pytest.raises(UserError, match="only a map-style data set"):
        batches_after(DataLoader(Stream()), 0, seed=1, rank=0)


def test_generators_go_on_where_they_were() -> None:
    cpu = torch.device("cpu")
    saved = unpack(pack(generators(cpu)))
    drawn = torch.rand(2).tolist(), np.random.rand(2).tolist()
    set_generators(saved)
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist()) == drawn


class Keeps:
    """An object with a state."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"of": [self.value]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["of"][0]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"ema": Keeps(np.zeros(2))}, "'ema' holds a numpy array at of\\[0\\]"),
        ({"path": Keeps(Path("a"))}, "'path' holds a PosixPath of pathlib"),
        ({"step": 3}, "'step' is of int, which has no state_dict"),
    ],
)
def test_what_cannot_be_saved_is_named(state: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_state(state)


def test_generators_and_scalers_can_be_saved() -> None:
    check_state({"generator": torch.Generator(), "scaler": torch.amp.GradScaler("cpu")})


def test_other_data_has_another_fingerprint(tmp_path: Path) -> None:
    def numbers(last: int) -> TensorDataset:
        return TensorDataset(torch.tensor([1, 2, last]))

    assert fingerprint_of(numbers(3)) == fingerprint_of(numbers(3)) != fingerprint_of(numbers(4))
    assert fingerprint_of({"train": [1], "valid": [2]}) != fingerprint_of({"train": [1, 2]})
    (tmp_path / "data.txt").write_text("old")
    before = fingerprint_of(tmp_path)
    (tmp_path / "data.txt").write_text("new")
    assert fingerprint_of(tmp_path) != before
    assert fingerprint_of(Noisy()) == fingerprint_of(Noisy()), "what it draws, it draws again"


def test_a_subject_names_folders_and_models() -> None:
    assert subject_of(Path("some where/My train_2.py")) == "my-train-2"
    assert subject_of(Path("__.py")) == "script"


def test_what_a_script_imports_is_told_from_its_text(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import os, own\nfrom transformers import Trainer\n")
    (tmp_path / "own.py").write_text("import torch.nn\nimport knee_tune.hf\n")
    found = installed_imports(tmp_path / "train.py")
    assert found == ("transformers", "transformers:Trainer", "torch.nn", "knee_tune.hf")
    own, others = imports_of(tmp_path, [tmp_path / "train.py"])
    assert [file.name for file in own] == ["train.py", "own.py"]
    assert others == ("transformers", "torch.nn"), "what a model is served with"


def pair(**groups: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(1, 1)
    parameters: list[dict[str, Any]] = [
        {"params": [model.weight]},
        {"params": [model.bias], **groups},
    ]
    return model, torch.optim.SGD(parameters, lr=0.1)


def test_alone_it_is_a_plain_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = pair(lr=0.2)
    run = knee_tune.join(model, optimizer, steps=4, evaluate_every=2, warmup_steps=1)
    seen = []
    for step in run.steps():
        seen.append([group["lr"] for group in optimizer.param_groups])
        if run.evaluate_now:
            run.report(valid_loss=1 / step)
    run.finish(model)
    knee = Knee(seed_lr=0.1, total_steps=4, warmup_steps=1, explore_steps=2)
    assert seen == [[knee.lr(step), 2 * knee.lr(step)] for step in range(1, 5)]
    printed = capsys.readouterr().out
    assert printed == "step 2 of 4: valid_loss 0.5\nstep 4 of 4: valid_loss 0.25\n"
    assert not [*tmp_path.iterdir()]


def test_a_group_may_say_its_own_scale() -> None:
    model, optimizer = pair(lr_scale=0.5)
    next(knee_tune.join(model, optimizer, steps=2).steps())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_a_lost_loss_ends_a_plain_run() -> None:
    run = knee_tune.join(*pair(), steps=2, evaluate_every=1)
    steps = run.steps()
    next(steps)
    run.report(valid_loss=float("nan"))
    with pytest.raises(SystemExit, match="diverged at step 1: non-finite valid_loss"):
        next(steps)


MISTAKES: dict[str, dict[str, Any]] = {
    "nothing was reported": {},
    "valid_loss was not reported, only valid_los": {"report": {"valid_los": 1.0}},
    "valid_loss is str, not one number": {"report": {"valid_loss": "low"}},
    "the LR was set to 0.1, and something made it 0.05": {"lr": 0.5},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_the_loop_is_one_line(said: str) -> None:
    model, optimizer = pair()
    run = knee_tune.join(model, optimizer, steps=5, evaluate_every=1)

    def loop() -> None:
        for _ in run.steps():
            run.report(**MISTAKES[said].get("report", {}))
            optimizer.param_groups[0]["lr"] *= MISTAKES[said].get("lr", 1.0)

    with pytest.raises(UserError, match=said):
        loop()


def test_a_run_is_finished_after_its_last_step() -> None:
    run = knee_tune.join(*pair(), steps=5, evaluate_every=5)
    for _ in run.steps():
        break
    with pytest.raises(UserError, match=r"run\.finish at step 1 of 5"):
        run.finish()
    run = knee_tune.join(*pair(), steps=1)
    next(run.steps())
    with pytest.raises(UserError, match=r"run\.finish at step 1 of 1: let run\.steps\(\) or"):
        run.finish()
    with pytest.raises(UserError, match="a run has one loop"):
        next(run.steps())


def test_what_a_run_is_finished_with_is_what_it_keeps() -> None:
    model, optimizer = pair()
    average = copy.deepcopy(model)
    run = knee_tune.join(model, optimizer, steps=1)
    for _ in run.steps():
        run.report(valid_loss=1.0)
    with pytest.raises(UserError, match=r"this Linear is not the model .* say join\(measured="):
        run.finish(average)
    run = knee_tune.join(model, optimizer, steps=1, measured=average)
    for _ in run.steps():
        run.report(valid_loss=1.0)
    run.finish(average)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "steps=... is missing"),
        ({"steps": 0}, "steps=0: Input should be greater than 0"),
        ({"steps": 1, "minimize": "a", "maximize": "b"}, "name one"),
    ],
)
def test_a_mistake_in_join_is_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        knee_tune.join(*pair(), **asked)
