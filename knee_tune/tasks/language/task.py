"""Language modelling: a GPT that predicts a text byte by byte."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.errors import UserError
from knee_tune.tasks.base import Split, Task, check_batch_size
from knee_tune.tasks.language.model import Gpt
from knee_tune.tasks.language.recipe import BYTES, GptRecipe
from knee_tune.tasks.language.text import TextManifest, find_prepared, map_text, read_manifest
from knee_tune.tasks.seeding import epochs_after, generator
from knee_tune.workers.group import Group

Windows = tuple[Tensor, Tensor]
"""Tokens (n, time) int64, and the token after each of them."""

ANSWER, TEMPERATURE = 200, 0.8
"""Bytes that ``predict`` adds, and how evenly they are drawn: 0 is the likeliest one always."""


class GptTask(Task[GptRecipe]):
    """Windows of a prepared text (see :mod:`knee_tune.tasks.language.text`), drawn at random."""

    same_shapes = True

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint, and bytes per split; of the validation text those that are measured.

        UserError if the text is not as it was prepared.
        """
        folder, _ = self._prepared
        manifest = read_manifest(folder, verify=True)
        return manifest.fingerprint, {**manifest.bytes, "valid": len(self._measured("valid"))}

    def steps_per_epoch(self, group: Group) -> int:
        """The recipe's, or as many steps as there are batches in the training text."""
        size = self.recipe.batch_size
        check_batch_size(size, accumulate=self.recipe.accumulate, group=group)
        tokens, context = len(self._splits["train"]), self.recipe.model.context
        if tokens <= context:
            raise UserError(
                f"recipe.model.context={context}: the training text of {self.recipe.data} has only "
                f"{tokens:,} bytes; use a shorter context"
            )
        return self.recipe.steps_per_epoch or max(1, tokens // (size * context))

    def build_model(self) -> nn.Module:
        """A GPT: tokens (n, time) -> logits (n, time, vocabulary)."""
        return Gpt(self.recipe.model)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Windows]]:
        """This rank's part of every batch, cut into micro-batches.

        A window may start anywhere: where they do is drawn for a whole epoch, from its number.
        """
        text, context = self._splits["train"], self.recipe.model.context
        steps, size = self.steps_per_epoch(group), self.recipe.batch_size
        for epoch, left in epochs_after(start_step, steps):
            draw = generator(self.seed, "order", epoch)
            starts = torch.randint(len(text) - context, (steps * size,), generator=draw)
            for step in left:
                mine = starts[step * size + group.rank : (step + 1) * size : group.world_size]
                parts = mine.tensor_split(self.recipe.accumulate)
                yield [_windows(text, part, context, group.device) for part in parts]

    def loss(self, model: nn.Module, batch: Windows) -> tuple[Tensor, float]:
        """Summed cross-entropy in nats, and the number of tokens."""
        tokens, following = batch
        logits = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
        return loss, following.numel()

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Loss over the split, cut into windows one after the other: every byte but the first."""
        text, context = self._measured(split), self.recipe.model.context
        whole, rest = divmod(len(text) - 1, context)
        starts, size = torch.arange(whole) * context, self.recipe.batch_size
        batches = [(starts[at : at + size], context) for at in range(0, whole, size)]
        if rest:
            batches.append((torch.tensor([whole * context]), rest))
        total = torch.zeros((), dtype=torch.float64, device=group.device)
        for starts, time in batches[group.rank :: group.world_size]:
            group.alive()
            loss, _ = self.loss(model, _windows(text, starts, time, group.device))
            total += loss.double()
        (loss_sum,) = group.sum([float(total)])
        mean = loss_sum / (len(text) - 1)
        return {"loss": mean, "bits_per_byte": mean / math.log(2)}

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[str]:
        """Each text, continued by :data:`ANSWER` bytes.

        They are drawn one by one at :data:`TEMPERATURE` from generators of the random seed, so the
        same text has always the same continuation.
        """
        return [self._continued(model, str(text)) for text in inputs]

    def examples(self) -> list[str]:
        """Beginnings of two lines of the test text."""
        text = bytes(self._splits["test"][:2000].tolist()).decode(errors="ignore")
        lines = [line.strip()[:20] for line in text.splitlines()[1:] if line.strip()]
        return [*lines, "To be", "And"][:2]

    def _continued(self, model: nn.Module, text: str) -> str:
        given = list(text.encode()) or [ord("\n")]
        device = next(model.parameters()).device
        draw = generator(self.seed, "continue")
        tokens = torch.tensor(given, device=device)
        for _ in range(ANSWER):
            logits = model(tokens[None, -self.recipe.model.context :])[0, -1, :BYTES]
            chances = torch.softmax(logits.float().cpu() / TEMPERATURE, 0)
            drawn = torch.multinomial(chances, 1, generator=draw)
            tokens = torch.cat([tokens, drawn.to(device)])
        added = bytes(tokens[len(given) :].tolist())
        return text + added.decode(errors="replace")

    def _measured(self, split: Split) -> Tensor:
        """The bytes that a split's metrics are over."""
        return self._splits[split][: self.recipe.valid_bytes if split == "valid" else None]

    @cached_property
    def _prepared(self) -> tuple[Path, TextManifest]:
        return find_prepared(self.data_dir, self.recipe.data)

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        return map_text(*self._prepared)


def _windows(text: Tensor, starts: Tensor, time: int, device: torch.device) -> Windows:
    """The windows of ``time`` tokens that start there, on ``device``."""
    found = text[starts[:, None] + torch.arange(time + 1)].long().to(device)
    return found[:, :-1], found[:, 1:]
