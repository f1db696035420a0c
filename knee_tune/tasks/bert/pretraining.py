"""BERT's pre-training: an encoder that guesses the masked tokens of a text."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.errors import UserError
from knee_tune.schedules.schedule import phase_at
from knee_tune.tasks.base import Split, Task, check_batch_size
from knee_tune.tasks.bert.encoder import build_encoder, encoded, save_encoder
from knee_tune.tasks.bert.masking import NOT_GUESSED, Inputs, Masking
from knee_tune.tasks.bert.pretraining_recipe import BertRecipe
from knee_tune.tasks.bert.pretraining_text import (
    TOKENIZER_FILES,
    PreparedTokens,
    find_prepared,
    read_manifest,
)
from knee_tune.tasks.bert.wordpiece import MASK, Specials, read_tokenizer
from knee_tune.tasks.seeding import generator
from knee_tune.workers.group import Group

EVALUATION_SEED = 0
"""Of the masks of evaluations: they are the same for every random seed."""

FILLINGS = 5
"""Tokens that ``predict`` names for a masked one."""

EVALUATED = 1 << 14
"""Tokens of one evaluation batch."""


class Pretraining(nn.Module):
    """An encoder with BERT's heads; the output layer is the embedding of the tokens.

    ``next_sentence``: with a second head, which tells from the first token whether the second part
    of an input follows the first.
    """

    def __init__(self, encoder: nn.Module, *, next_sentence: bool) -> None:
        super().__init__()
        self.encoder = encoder
        config: Any = encoder.config
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.follows = nn.Linear(config.hidden_size, 2) if next_sentence else None
        for layer in (self.transform, self.follows):
            if layer is not None:
                nn.init.normal_(layer.weight, std=config.initializer_range)
                nn.init.zeros_(layer.bias)

    def forward(
        self, tokens: Tensor, segments: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (n, guesses, vocabulary) at the ``places`` (n, guesses) alone; and (n, 2)."""
        hidden = encoded(self.encoder, tokens, segments)
        at = places[..., None].expand(-1, -1, hidden.shape[2])
        guessed = self.norm(F.gelu(self.transform(hidden.gather(1, at))))
        logits = F.linear(guessed, self.encoder.embeddings.word_embeddings.weight, self.bias)  # type: ignore[union-attr, arg-type]
        if self.follows is None:
            return logits, None
        pooled = self.encoder.pooler(hidden)  # type: ignore[operator]
        return logits, self.follows(pooled)


class BertTask(Task[BertRecipe]):
    """Inputs of a prepared text (see :mod:`knee_tune.tasks.bert.pretraining_text`).

    What a step is trained on follows from its phase, and from its number within it.
    """

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint, and tokens per split.

        UserError if the text is not as it was prepared, or too short for a split's inputs.
        """
        manifest = read_manifest(self._prepared.folder, verify=True)
        for split in ("valid", "test"):
            self._measured(split)
        return manifest.fingerprint, dict(manifest.tokens)

    def steps_per_epoch(self, group: Group) -> int:
        """One: budgets are steps. UserError if a phase's batch is too large for text or ranks."""
        for phase in range(max(1, len(self.recipe.phases))):
            _, size, accumulate = self.recipe.batch_of(phase)
            check_batch_size(size, accumulate=accumulate, group=group)
            self._batches_per_pass(phase)
        return 1

    def build_model(self) -> nn.Module:
        """An encoder of the recipe's size, with as many tokens as the text's vocabulary."""
        paired = self.recipe.next_sentence
        encoder = build_encoder(self.recipe.model, vocabulary=self._vocabulary, pooler=paired)
        return Pretraining(encoder, next_sentence=paired)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Inputs]]:
        """This rank's part of every batch, cut into micro-batches.

        The order of the documents, and of the inputs, is drawn for every pass through the text,
        and what is masked for every batch: from (seed, length, pass, batch).
        """
        ends, drawn = (0, *self.phase_ends), None
        for step in count(start_step):
            phase = phase_at(self.phase_ends, step + 1)
            length, size, accumulate = self.recipe.batch_of(phase)
            masking = self._masking(length)
            passed, batch = divmod(step - ends[phase], self._batches_per_pass(phase))
            if drawn != (length, passed):
                drawn = length, passed
                draw = generator(self.seed, "order", length, passed)
                stream = self._prepared.stream("train", draw)
                order = torch.randperm(masking.count(len(stream)), generator=draw)
            numbers = order[batch * size : (batch + 1) * size]
            mine = slice(group.rank, None, group.world_size)
            masks = generator(self.seed, "masks", length, passed, batch)
            inputs = masking.inputs(stream, numbers, masks, mine)
            yield [part.to(group.device) for part in inputs.parts(accumulate)]

    def loss(self, model: nn.Module, batch: Inputs) -> tuple[Tensor, float]:
        """Summed cross-entropy in nats, and the number of guessed tokens.

        With next-sentence prediction the mean of its cross-entropy is added to theirs.
        """
        logits, follows = model(batch.tokens, batch.segments, batch.places)
        loss = _cross_entropy(logits, batch.labels)
        if follows is not None:
            one = F.cross_entropy(follows.float(), batch.follows, reduction="sum")
            loss = loss + one * batch.labels.shape[1]
        return loss, batch.guesses

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Loss and accuracy over the split's inputs, which are masked always in the same way."""
        loss = hits = torch.zeros((), dtype=torch.float64, device=group.device)
        guesses = 0
        for inputs in self._measured(split)[group.rank :: group.world_size]:
            group.alive()
            batch = inputs.to(group.device)
            logits, _ = model(batch.tokens, batch.segments, batch.places)
            loss = loss + _cross_entropy(logits, batch.labels).double()
            hits = hits + (logits.argmax(2) == batch.labels).sum()
            guesses += batch.guesses
        loss_sum, hit, guessed = group.sum([float(loss), float(hits), guesses])
        return {"loss": loss_sum / guessed, "accuracy": 100 * hit / guessed}

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[str]:
        """The likeliest tokens for every [MASK] of each text, the likeliest first.

        Those of one mask are separated by commas, masks by semicolons.
        """
        return [self._filled(model, str(text)) for text in inputs]

    def assets(self) -> dict[str, Path]:
        """What tokenizes."""
        folder = self._tokenizer_folder
        paths = (folder / name for name in TOKENIZER_FILES)
        return {
            path.relative_to(self.data_dir).as_posix(): path for path in paths if path.is_file()
        }

    def examples(self) -> list[str]:
        """Two texts with a word to guess."""
        return [f"The {MASK} was very happy .", f"She had a {MASK} heart and a gentle {MASK} ."]

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the encoder as others read it: configuration, weights, vocabulary."""
        save_encoder(model.encoder, folder)
        for path in self.assets().values():
            (folder / path.name).write_bytes(path.read_bytes())

    def _filled(self, model: nn.Module, text: str) -> str:
        special, device = self._specials, next(model.parameters()).device
        most = self.recipe.model.positions - 2
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids[:most]
        tokens = torch.tensor([[special.first, *ids, special.between]], device=device)
        places = (tokens == special.mask).nonzero()[:, 1][None]
        logits, _ = model(tokens, torch.zeros_like(tokens), places)
        likeliest = logits[0].topk(min(FILLINGS, self._vocabulary), dim=1).indices.tolist()
        return "; ".join(
            ", ".join(str(self._tokenizer.id_to_token(token)) for token in each)
            for each in likeliest
        )

    def _masking(self, length: int) -> Masking:
        return Masking(
            self._specials,
            vocabulary=self._vocabulary,
            length=length,
            paired=self.recipe.next_sentence,
        )

    def _batches_per_pass(self, phase: int) -> int:
        """Whole batches of a phase's inputs in the training text; UserError if there is none."""
        length, size, _ = self.recipe.batch_of(phase)
        inputs = self._masking(length).count(self._prepared.size("train"))
        if inputs < size:
            raise UserError(
                f"recipe.batch_size={size}: the training text of {self.recipe.data} has only "
                f"{inputs:,} inputs of {length} tokens; use a smaller batch, or more text"
            )
        return inputs // size

    def _measured(self, split: str) -> list[Inputs]:
        """The batches that a split's metrics are over, made once; UserError if there is none."""
        if split in self._made:
            return self._made[split]
        masking = self._masking(self.recipe.measured_length)
        stream = self._prepared.stream(split)
        inputs = masking.count(len(stream))
        if not inputs:
            raise UserError(
                f"recipe.valid_length={self.recipe.measured_length}: the {split} text of "
                f"{self.recipe.data} has only {len(stream):,} tokens; use shorter inputs, or more "
                "text"
            )
        if split == "valid":
            inputs = min(inputs, self.recipe.valid_inputs or inputs)
        numbers = torch.arange(inputs)
        size = max(1, EVALUATED // self.recipe.measured_length)
        batches = []
        for masks in range(self.recipe.valid_masks):
            for batch, part in enumerate(torch.split(numbers, size)):
                draw = generator(EVALUATION_SEED, "masks", masks, batch)
                batches.append(masking.inputs(stream, part, draw))
        self._made[split] = batches
        return batches

    @cached_property
    def _made(self) -> dict[str, list[Inputs]]:
        return {}

    @property
    def _tokenizer_folder(self) -> Path:
        """Where it lies: with the text, or with a registered model."""
        folder = self.data_dir / self.recipe.data
        return folder if (folder / TOKENIZER_FILES[0]).is_file() else self._prepared.folder

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._tokenizer_folder, named=f"recipe.data={self.recipe.data}")

    @cached_property
    def _vocabulary(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def _specials(self) -> Specials:
        return Specials.of(self._tokenizer)

    @cached_property
    def _prepared(self) -> PreparedTokens:
        return find_prepared(self.data_dir, self.recipe.data)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over what is to be guessed, in float32."""
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=NOT_GUESSED, reduction="sum"
    )
