"""The suite for those who write a task: it passes for one that keeps the promises, and finds out
one that does not."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, TensorDataset

import knee_tune
from knee_tune.tasks.base import Task
from knee_tune.tasks.outside import made, recipe_of
from knee_tune.testing import Make, TaskContract, model_of, same, steps

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_task" / "my_task.py"


class TestTheExample(TaskContract):
    task = f"{EXAMPLE}:Wine"

    @pytest.fixture(autouse=True)
    def _leaves_no_module(self) -> Iterator[None]:
        yield
        sys.modules.pop("my_task", None)


class Noisy(Dataset[tuple[Tensor, float]]):
    """Items with augmentation drawn from every generator there is."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[Tensor, float]:
        noise = torch.randn(1) + float(np.random.rand())
        return torch.full((3,), index / 60) + 0.01 * noise, float(index % 7)


class Rich(knee_tune.SimpleTask[knee_tune.SimpleRecipe]):
    """An optimizer with groups, an average of the weights, random items, noise in the loss."""

    metrics: ClassVar[Mapping[str, Any]] = {"error": "minimize"}

    def datasets(self) -> Mapping[str, Any]:
        return {"train": Noisy(), "valid": Noisy()}

    def build_model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
        average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(model, multi_avg_fn=average)
        return model

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        inputs, targets = batch
        errors = (model(inputs).squeeze(1) - targets).square()
        if model.training:
            errors = errors * float(np.random.rand())
        return errors.float().mean(), len(targets)

    def evaluate_batch(
        self, model: nn.Module, batch: Any
    ) -> Mapping[str, tuple[Tensor | float, float]]:
        loss, count = self.loss(model, batch)
        return {"error": (loss * count, count)}

    def build_optimizer(self, model: nn.Module) -> optim.Optimizer:
        first, *others = model.parameters()
        groups: list[dict[str, Any]] = [{"params": [first], "lr_scale": 0.1}, {"params": others}]
        return torch.optim.AdamW(groups)

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        return {"average": self.average}

    def after_step(self, model: nn.Module, step: int) -> None:
        self.average.update_parameters(model)

    def measured(self, model: nn.Module) -> nn.Module:
        average: nn.Module = self.average.module
        return average


class TestARichTask(TaskContract):
    task = Rich
    recipe: ClassVar[Mapping[str, Any]] = {"batch_size": 12}

    @pytest.fixture
    def example_ids(self) -> Callable[[Any], list[Any]]:
        return lambda batch: [tuple(row.tolist()) for row in batch[0]]

    def test_random_items_are_the_same_in_every_process(self, make: Make) -> None:
        assert same(steps(make(workers=2), 0, 6), steps(make(), 0, 6))


class Forgetful(Rich):
    """Its average is left out of its state."""

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        return {}

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        loss, count = super().loss(model, batch)
        pull = sum(
            (mine - theirs.detach()).square().sum()
            for mine, theirs in zip(model.parameters(), self.average.parameters(), strict=True)
        )
        return loss + pull, count


class Sums(Rich):
    """Its loss is a sum, where a mean is wanted."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        loss, count = super().loss(model.eval(), batch)
        return loss * count, count


class SeededOnce(Rich):
    """What is in its data sets depends on the random seed."""

    def datasets(self) -> Mapping[str, Any]:
        rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(self.seed))
        data = TensorDataset(rows, rows.sum(1))
        return {"train": data, "valid": data}


def run_that_goes_on(make: Make, folder: Path) -> None:
    TaskContract().test_a_run_that_goes_on_has_the_same_bits(make, folder)


def loss(make: Make, _: Path) -> None:
    with torch.no_grad():
        TaskContract().test_loss_is_a_sum_with_its_count(make, model_of(make()).eval())


def fingerprint(make: Make, _: Path) -> None:
    TaskContract().test_fingerprint_is_that_of_the_data(make)


@pytest.mark.parametrize(
    ("broken", "test"), [(Forgetful, run_that_goes_on), (Sums, loss), (SeededOnce, fingerprint)]
)
def test_what_does_not_keep_a_promise_is_found_out(
    broken: type[Rich], test: Callable[[Make, Path], None], tmp_path: Path
) -> None:
    def make(*, seed: int = 1, **recipe: Any) -> Task[Any]:
        settings = recipe_of(broken).model_validate({"batch_size": 12, **recipe})
        return made(broken, settings, data_dir=tmp_path, seed=seed)

    with pytest.raises(AssertionError):
        test(make, tmp_path)
