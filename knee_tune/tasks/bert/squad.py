"""Question answering: an encoder that marks the answer to a question in a paragraph."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.errors import UserError
from knee_tune.files import checksum
from knee_tune.tasks.base import Split, Task, check_batch_size
from knee_tune.tasks.bert.encoder import (
    CONFIG,
    WEIGHTS,
    build_encoder,
    empty_encoder,
    encoded,
    load_encoder,
)
from knee_tune.tasks.bert.squad_metric import exact_match, f1
from knee_tune.tasks.bert.squad_prepare import (
    SquadManifest,
    find_prepared,
    read_manifest,
    read_questions,
)
from knee_tune.tasks.bert.squad_recipe import SquadRecipe
from knee_tune.tasks.bert.squad_text import Question, asked_of
from knee_tune.tasks.bert.squad_windows import Batch, Span, Windows
from knee_tune.tasks.bert.wordpiece import SETTINGS, TOKENIZER, VOCABULARY, read_tokenizer
from knee_tune.tasks.seeding import epochs_after, generator
from knee_tune.workers.group import Group


class SpanModel(nn.Module):
    """An encoder and one linear layer: logits of an answer's start and its end at every token."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.ends = nn.Linear(config.hidden_size, 2)
        nn.init.normal_(self.ends.weight, std=config.initializer_range)
        nn.init.zeros_(self.ends.bias)

    def forward(self, tokens: Tensor, segments: Tensor, mask: Tensor) -> Tensor:
        """(n, time) each -> (n, time, 2); padding is as unlikely as can be."""
        hidden = encoded(self.encoder, tokens, segments, mask)
        logits: Tensor = self.ends(hidden).float()
        return logits.masked_fill(~mask[..., None], torch.finfo(torch.float32).min)


class SquadTask(Task[SquadRecipe]):
    """Questions of a prepared set (see :mod:`knee_tune.tasks.bert.squad_prepare`).

    Paragraphs that are too long are read in windows that overlap; the answer is the best span of
    all of them.
    """

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint of the questions and of the encoder's folder, and questions per split.

        UserError if the questions are not as they were prepared.
        """
        folder, _ = self._prepared
        manifest = read_manifest(folder, verify=True)
        parts = [manifest.fingerprint]
        if self.recipe.model.path is not None:
            named = (self._encoder / each for each in _ENCODER_FILES)
            parts += [f"{path.name} {checksum(path)}" for path in named if path.is_file()]
        limits = {"train": self.recipe.train_questions, "valid": self.recipe.valid_questions}
        examples = {
            split: min(count, limits.get(split) or count)
            for split, count in manifest.questions.items()
        }
        return sha256("\n".join(parts).encode()).hexdigest(), examples

    def steps_per_epoch(self, group: Group) -> int:
        """Number of whole batches of windows, the same for every world size."""
        size, windows = self.recipe.batch_size, len(self._windows("train"))
        check_batch_size(size, accumulate=self.recipe.accumulate, group=group)
        if size > windows:
            raise UserError(
                f"recipe.batch_size={size}: there are only {windows} windows to train on"
            )
        return windows // size

    def build_model(self) -> nn.Module:
        """The encoder in ``recipe.model.path``, or a fresh one of the recipe's size, and its head.

        A registered model, which has its weights from elsewhere, needs the folder's configuration
        alone.
        """
        model, tokens = self.recipe.model, self._tokenizer.get_vocab_size()
        if model.path is not None:
            named = f"recipe.model.path={model.path}"
            read = empty_encoder if self._is_served else load_encoder
            encoder = read(self._encoder, named=named)
            _check_fits(encoder.config, tokens=tokens, time=self.recipe.max_length, named=named)
        elif model.size is not None:
            encoder = build_encoder(model.size, vocabulary=tokens)
            _check_fits(
                encoder.config,
                tokens=tokens,
                time=self.recipe.max_length,
                named="recipe.model.size",
            )
        else:
            raise UserError(
                "recipe.model.path=null: give the folder of a pre-trained encoder, with "
                f"{CONFIG}, {WEIGHTS} and {TOKENIZER} or {VOCABULARY}; the preset demo needs none"
            )
        return SpanModel(encoder)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Batch]]:
        """This rank's part of every batch of windows, cut into micro-batches."""
        windows, size = self._windows("train"), self.recipe.batch_size
        for epoch, left in epochs_after(start_step, self.steps_per_epoch(group)):
            order = torch.randperm(len(windows), generator=generator(self.seed, "order", epoch))
            for step in left:
                mine = order[step * size + group.rank : (step + 1) * size : group.world_size]
                parts = mine.tensor_split(self.recipe.accumulate)
                yield [windows.batch(part.tolist()).to(group.device) for part in parts]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Cross-entropy of the start and of the end, their mean summed; and the windows.

        A window that does not hold the answer has its first token for both, as in the reference.
        """
        return self._loss(model(batch.tokens, batch.segments, batch.mask), batch), len(batch)

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Exact match and F1 over the split's questions, loss over their windows.

        All windows of a question are read by one rank.
        """
        windows = self._windows(split)
        mine = range(group.rank, len(windows.questions), group.world_size)
        loss, read, spans = self._read(model, windows, mine, group)
        scores = [0.0, 0.0]
        for number in mine:
            (answer, *_) = [*windows.answers(number, spans[number]), ""]
            golds = [gold.text for gold in windows.questions[number].answers]
            scores[0] += exact_match(answer, golds)
            scores[1] += f1(answer, golds)
        exact, shared, total, count = group.sum([*scores, loss, read])
        questions = len(windows.questions)
        return {"em": exact / questions, "f1": shared / questions, "loss": total / count}

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[str]:
        """The answer to each ``{"question": ..., "context": ...}``: a part of the context."""
        windows = Windows([asked_of(given) for given in inputs], self._tokenizer, self.recipe)
        device = next(model.parameters()).device
        asked = range(len(windows.questions))
        _, _, spans = self._read(model, windows, asked, Group(device=device))
        return [[*windows.answers(number, spans[number]), ""][0] for number in asked]

    def assets(self) -> dict[str, Path]:
        """What tokenizes, and the configuration of an encoder that was given by its folder."""
        if self.recipe.model.path is None:
            path = self._vocabulary
            return {path.relative_to(self.data_dir).as_posix(): path}
        kept = (name for name in _ENCODER_FILES if name != WEIGHTS)
        return {
            f"{self._served_folder.name}/{name}": self._encoder / name
            for name in kept
            if (self._encoder / name).is_file()
        }

    def examples(self) -> list[Any]:
        """Two questions of the test split."""
        chosen = self._questions("test")[:2]
        return [{"question": each.question, "context": each.context} for each in chosen]

    def _read(
        self, model: nn.Module, windows: Windows, questions: range, group: Group
    ) -> tuple[float, int, dict[int, list[Span]]]:
        """Loss, number of windows, and the spans found, of these questions; alike lengths together.

        The loss means something only where the answers are known.
        """
        asked = windows.windows
        mine = [number for number, window in enumerate(asked) if window.number in questions]
        mine.sort(key=lambda number: (asked[number].length, number))
        total, spans = 0.0, defaultdict[int, list[Span]](list)
        for at in range(0, len(mine), self.recipe.evaluation_batch):
            group.alive()
            numbers = mine[at : at + self.recipe.evaluation_batch]
            batch = windows.batch(numbers).to(group.device)
            logits = model(batch.tokens, batch.segments, batch.mask)
            total += float(self._loss(logits, batch))
            for number, found in zip(numbers, windows.spans(numbers, logits), strict=True):
                spans[asked[number].number] += found
        return total, len(mine), spans

    @staticmethod
    def _loss(logits: Tensor, batch: Batch) -> Tensor:
        start, end = logits.unbind(2)
        return (
            F.cross_entropy(start, batch.starts, reduction="sum")
            + F.cross_entropy(end, batch.ends, reduction="sum")
        ) / 2

    # What the data folder, or the registered model's, holds.

    @property
    def _served_folder(self) -> Path:
        """Where the files of a registered model's encoder lie, and nothing else ever does."""
        digest = sha256(str(self.recipe.model.path).encode()).hexdigest()[:16]
        return self.data_dir / f"encoder-{digest}"

    @property
    def _is_served(self) -> bool:
        return self._served_folder.is_dir()

    @property
    def _encoder(self) -> Path:
        """The folder of the encoder, where there is one."""
        return self._served_folder if self._is_served else Path(str(self.recipe.model.path))

    @property
    def _vocabulary(self) -> Path:
        path = self.data_dir / self.recipe.data / VOCABULARY
        if not path.is_file():
            self._prepared  # noqa: B018  # makes the generated set
        return path

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        path = self.recipe.model.path
        if path is None:
            folder = self._vocabulary.parent
            return read_tokenizer(folder, named=f"recipe.data={self.recipe.data}")
        return read_tokenizer(self._encoder, named=f"recipe.model.path={path}")

    @cached_property
    def _prepared(self) -> tuple[Path, SquadManifest]:
        return find_prepared(self.data_dir, self.recipe.data)

    def _questions(self, split: str) -> list[Question]:
        limits = {"train": self.recipe.train_questions, "valid": self.recipe.valid_questions}
        return read_questions(self._prepared[0], split)[: limits.get(split)]

    def _windows(self, split: str) -> Windows:
        """The windows of a split, made once."""
        if split not in self._made:
            self._made[split] = Windows(self._questions(split), self._tokenizer, self.recipe)
        return self._made[split]

    @cached_property
    def _made(self) -> dict[str, Windows]:
        return {}


_ENCODER_FILES = (CONFIG, WEIGHTS, TOKENIZER, SETTINGS, VOCABULARY)
"""All of an encoder's folder that is read."""


def _check_fits(config: Any, *, tokens: int, time: int, named: str) -> None:
    """UserError if the tokenizer or the windows have more than the encoder has embeddings for."""
    if tokens > config.vocab_size:
        raise UserError(
            f"{named}: its tokenizer has {tokens:,} tokens, its embeddings {config.vocab_size:,}"
        )
    if time > config.max_position_embeddings:
        raise UserError(
            f"recipe.max_length={time}: this encoder reads {config.max_position_embeddings} tokens "
            f"at most ({named})"
        )
