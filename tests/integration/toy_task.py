"""A task small enough to register in a test: it answers with the length of a sentence, scaled."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from knee_tune.config.recipe import Optimizer, Recipe
from knee_tune.tasks.base import Split, Task
from knee_tune.workers.group import Group


class ToyRecipe(Recipe):
    """Nothing to set."""

    epochs: int = 1
    seed_lr: float = 0.1
    optimizer: Optimizer = Optimizer(name="sgd")
    objective: str = "loss"


class ToyTask(Task[ToyRecipe]):
    """Sentences in, strings out, with a word list as asset."""

    def describe(self) -> tuple[str, dict[str, int]]:
        return "toy", {"train": 1}

    def steps_per_epoch(self, group: Group) -> int:
        return 1

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Any]]:
        yield from ()

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return torch.zeros(()), 1.0

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        return {"loss": 0.0}

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[Any]:
        words = (self.data_dir / "dict" / "words.txt").read_text().split()
        lengths = torch.tensor([[float(len(sentence))] for sentence in inputs])
        return [f"{words[0]} {value:.3f}" for value in model(lengths).flatten().tolist()]

    def assets(self) -> dict[str, Path]:
        return {"dict/words.txt": self.data_dir / "dict" / "words.txt"}

    def examples(self) -> list[Any]:
        return ["Guten Morgen .", "Danke ."]
