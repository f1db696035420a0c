"""Translation by a Transformer: IWSLT'14 German-English, and any other language pair."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from sacrebleu import corpus_bleu
from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.tasks.base import Split, Task
from knee_tune.tasks.seeding import epochs_after, generator, stream_seed
from knee_tune.tasks.translation.batches import (
    MULTIPLE,
    Epochs,
    Indices,
    Pairs,
    batches_by_length,
    collate,
    read_pairs,
)
from knee_tune.tasks.translation.binary import Sentences
from knee_tune.tasks.translation.cutoff import cutoff_loss, doubled
from knee_tune.tasks.translation.family import Family, family_of
from knee_tune.tasks.translation.prepared import (
    Codec,
    Manifest,
    asset_names,
    find_prepared,
    read_manifest,
)
from knee_tune.tasks.translation.recipe import Cutoff, TranslationRecipe
from knee_tune.tasks.translation.vocabulary import PAD, SPECIAL, UNKNOWN, Vocabulary
from knee_tune.workers.group import Group

GENERATED_TOGETHER = 128
"""Most sentences of one beam search."""


_HYPHEN = re.compile(r"(\S)-(\S)")


@dataclass(frozen=True)
class Batch:
    """One micro-batch as fairseq collates it, and one of its pairs: no other batch holds that.

    An empty share at the end of an epoch is a stand-in whose loss counts nothing: every rank
    must run forward and backward for the gradients to meet.
    """

    sample: dict[str, Any]
    pair: int
    counts: bool = True


class TranslationTask(Task[TranslationRecipe]):
    """Sentence pairs of a prepared set (see :mod:`knee_tune.tasks.translation.prepared`).

    The recipe says which of the families trains (:mod:`knee_tune.tasks.translation.family`).
    """

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint and pairs per split, of the held-out ones those that metrics are taken over.

        UserError if a file is not as it was prepared, if a split has no pair that fits, or if the
        model's library is missing.
        """
        folder, _ = self._prepared
        manifest = read_manifest(folder, verify=True)
        self._family  # noqa: B018 - not installed? Better said now than by every trial
        measured = {split: self._measured(split) for split in get_args(Split)}
        return manifest.fingerprint, {**manifest.pairs, **measured}

    def steps_per_epoch(self, group: Group) -> int:
        """Micro-batches of one rank, in groups of ``accumulate``; the last may be smaller."""
        return math.ceil(self._epochs(group).steps(group) / self.recipe.accumulate)

    def build_model(self) -> nn.Module:
        """An encoder-decoder Transformer over the set's dictionaries."""
        source, target = self._vocabularies
        if self.recipe.model.share_embeddings == "all" and source.ids != target.ids:
            raise UserError(
                f"recipe.model.share_embeddings=all: {self.recipe.data} has one dictionary "
                "per language; use 'decoder', or prepare the data with a joined dictionary"
            )
        return self._family.build_model()

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Batch]]:
        """This rank's micro-batches; the last group of an epoch may be shorter, on every rank."""
        epochs, pairs = self._epochs(group), self._pairs("train")
        steps, together = self.steps_per_epoch(group), self.recipe.accumulate
        stand_in = epochs.batches[0][:1]
        for epoch, left in epochs_after(start_step, steps):
            shares = epochs.shares(epoch, group)
            for step in left:
                yield [
                    self._collate(
                        pairs, share if len(share) else stand_in, group, counts=len(share) > 0
                    )
                    for share in shares[step * together : (step + 1) * together]
                ]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Summed label-smoothed cross-entropy and the number of target tokens.

        With Cutoff, the loss of the batch and of the same with parts cut out.
        """
        if self.recipe.cutoff is None:
            loss, _ = self._family.losses(model, batch.sample)
            tokens = float(batch.sample["ntokens"])
        else:
            loss, tokens = self._cutoff_loss(model, batch, self.recipe.cutoff)
        return (loss, tokens) if batch.counts else (loss * 0, 0.0)

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Loss, perplexity per target token and per word; ``final`` adds BLEU with beam search."""
        pairs = self._pairs(split)
        batches = self._by_length(pairs, limit=self._limit(split))
        sums = torch.zeros(4, dtype=torch.float64, device=group.device)
        last_pieces = self._last_pieces.to(group.device)
        for indices in batches[group.rank :: group.world_size]:
            group.alive()
            sample = self._collate(pairs, indices, group).sample
            loss, nll = self._family.losses(model, sample)
            tokens = sums.new_tensor(float(sample["ntokens"]))
            words = last_pieces[sample["target"]].sum()
            sums += torch.stack([loss.double(), nll.double(), tokens, words.double()])
        loss_sum, nll_sum, token_sum, word_sum = group.sum(sums.tolist())
        metrics = {
            "loss": loss_sum / token_sum,
            "ppl": _exp(nll_sum / token_sum),
            "word_ppl": _exp(nll_sum / word_sum),
        }
        if final:
            metrics["bleu"] = self._bleu(model, group, split)
        return metrics

    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[str]:
        """Translations of raw source sentences, detokenised.

        UserError for a sentence that is longer than the model reads: half of it would be no answer.
        """
        pieces = [self._codec.encode(str(sentence)) for sentence in inputs]
        most = self.recipe.max_source_positions
        for number, sentence in enumerate(pieces, start=1):
            length = len(sentence.split()) + 1  # the end of the sentence
            if length > most:
                raise UserError(
                    f"input {number} of {len(pieces)} has {length:,} tokens, and this model reads "
                    f"{most:,} at most; split it into sentences"
                )
        sources = Pairs(Sentences.of(map(self._vocabularies[0].encode, pieces)))
        device = next(model.parameters()).device
        translations = [""] * len(pieces)
        for index, words, _ in self._translate(model, sources, Group(device=device)):
            translations[index] = self._codec.decode(words) if pieces[index] else ""
        return translations

    def assets(self) -> dict[str, Path]:
        """Dictionaries, BPE codes and the manifest of the prepared set."""
        folder, manifest = self._prepared
        return {f"{folder.name}/{name}": folder / name for name in asset_names(manifest)}

    def examples(self) -> list[str]:
        """Two short source sentences of the test split; the shortest where none is usual."""
        sources, vocabulary = self._pairs("test").source, self._vocabularies[0]
        short = (tokens for tokens in sources if 5 <= len(tokens) <= 20)
        known = list(islice((each for each in short if UNKNOWN not in each), 2))
        shortest = sources.sizes.argsort(kind="stable")[:2]
        return [
            self._codec.decode_source(vocabulary.text(tokens.tolist()))
            for tokens in known or [sources[index] for index in shortest]
        ]

    def _cutoff_loss(self, model: nn.Module, batch: Batch, cutoff: Cutoff) -> tuple[Tensor, float]:
        """See :func:`~knee_tune.tasks.translation.cutoff.cutoff_loss`; and the target tokens.

        What is cut depends on the seed that torch has at this step and on the pairs, not on what
        was drawn before.
        """
        inputs = doubled(
            batch.sample["net_input"],
            cutoff,
            first_word=len(SPECIAL),
            unknown=UNKNOWN,
            embed_dim=self.recipe.model.embed_dim,
            draw=generator(torch.initial_seed(), "cutoff", batch.pair),
        )
        target = batch.sample["target"].flatten()
        tokens = (target != PAD).nonzero().squeeze(1)
        logits = model(**inputs, positions=torch.cat([tokens, tokens + len(target)]))
        smoothing = self.recipe.label_smoothing
        return cutoff_loss(logits, target[tokens], cutoff, smoothing=smoothing), float(len(tokens))

    def _bleu(self, model: nn.Module, group: Group, split: Split) -> float:
        mine = [
            (hypothesis, reference)
            for _, hypothesis, reference in self._translate(
                model, self._pairs(split), group, limit=self._limit(split)
            )
        ]
        shares = cast(list[list[tuple[str, str]]], group.gather(mine))
        hypotheses, references = zip(*(pair for share in shares for pair in share), strict=True)
        return tokenised_bleu(
            list(hypotheses), list(references), split_compounds=self.recipe.split_compounds
        )

    def _translate(
        self, model: nn.Module, pairs: Pairs, group: Group, *, limit: int | None = None
    ) -> Iterator[tuple[int, str, str]]:
        """(index in ``pairs``, best translation, reference or "") of every sentence, as words."""
        batches = self._by_length(pairs, limit=limit, max_sentences=GENERATED_TOGETHER)
        vocabulary = self._vocabularies[1]
        for indices in batches[group.rank :: group.world_size]:
            group.alive()
            sample = self._collate(pairs, indices, group).sample
            best = self._family.translate(model, sample)
            for index, tokens in zip(sample["id"].tolist(), best, strict=True):
                words = vocabulary.text(tokens.tolist())
                target = [] if pairs.target is None else pairs.target[index].tolist()
                yield index, words, vocabulary.text(target, reference=True)

    def _by_length(
        self, pairs: Pairs, *, limit: int | None = None, max_sentences: int = 0
    ) -> list[Indices]:
        """Batches of those pairs that fit the model, and that metrics are taken over."""
        return batches_by_length(
            pairs,
            max_tokens=self.recipe.evaluation_tokens,
            most=self._most,
            max_sentences=max_sentences,
            limit=limit,
        )

    def _measured(self, split: Split) -> int:
        """Pairs of a split that metrics are taken over: what is too long for the model is not."""
        count = sum(map(len, self._by_length(self._pairs(split), limit=self._limit(split))))
        if not count:
            raise self._nothing_fits(split)
        return count

    @property
    def _most(self) -> tuple[int, int]:
        """Tokens of a source and of a target at most."""
        return self.recipe.max_source_positions, self.recipe.max_target_positions

    def _nothing_fits(self, split: str) -> UserError:
        source, target = self._most
        return UserError(
            f"recipe.data={self.recipe.data}: no {split} pair is as short as "
            f"max_source_positions={source} and max_target_positions={target}; raise them"
        )

    @cached_property
    def _last_pieces(self) -> Tensor:
        """By target symbol, whether a word ends with it (types,) bool; so does a sentence's end."""
        _, target = self._vocabularies
        return torch.tensor(
            [not symbol.endswith("@@") and number != PAD for symbol, number in target.ids.items()]
        )

    def _limit(self, split: Split) -> int | None:
        return self.recipe.valid_pairs if split == "valid" else None

    def _collate(
        self, pairs: Pairs, indices: Indices, group: Group, *, counts: bool = True
    ) -> Batch:
        sample = collate(pairs, indices)
        return Batch(on_device(sample, group.device), int(indices[0]), counts)

    def batch_limits(self, group: Group) -> tuple[int, int]:
        """Most tokens of one rank's micro-batch, and the multiple its sentences come in."""
        shares = group.world_size * self.recipe.accumulate
        limit = self.recipe.tokens_per_step // shares
        pairs = self._pairs("train")
        fitting = pairs.fitting(np.arange(len(pairs)), self._most)
        if not len(fitting):
            raise self._nothing_fits("training")
        longest = int(pairs.lengths[fitting].max())
        if longest > limit:
            raise UserError(
                f"recipe.tokens_per_step={self.recipe.tokens_per_step}: {shares} micro-batches of "
                f"{limit} tokens per step cannot hold the longest sentence of {self.recipe.data} "
                f"({longest} tokens); set it to {longest * shares} or more"
            )
        # Where a multiple of the longest sentences does not fit, fairseq silently drops some.
        return limit, MULTIPLE if limit >= MULTIPLE * longest else 1

    def _epochs(self, group: Group) -> Epochs:
        """The batches of the training split."""
        limits = self.batch_limits(group)
        if limits not in self._epochs_by_limits:
            max_tokens, multiple = limits
            self._epochs_by_limits[limits] = Epochs(
                self._pairs("train"),
                max_tokens=max_tokens,
                multiple=multiple,
                most=self._most,
                seed=self.order_seed,
            )
        return self._epochs_by_limits[limits]

    @property
    def order_seed(self) -> int:
        """Seed of the data order, small enough for fairseq to add the epoch to it."""
        return stream_seed(self.seed, "order") % 2**31

    @cached_property
    def _epochs_by_limits(self) -> dict[tuple[int, int], Epochs]:
        return {}

    @cached_property
    def _prepared(self) -> tuple[Path, Manifest]:
        return find_prepared(self.data_dir, self.recipe.data, preparing=self.recipe.preparing)

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self._prepared[0])

    @cached_property
    def _family(self) -> Family:
        return family_of(self.recipe, *self._prepared)

    @cached_property
    def _vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """Of the source and of the target."""
        folder, manifest = self._prepared
        languages = (manifest.source, manifest.target)
        source, target = (Vocabulary.read(folder / f"dict.{each}.txt") for each in languages)
        return source, target

    def _pairs(self, split: str) -> Pairs:
        """A split, mapped into memory."""
        if split not in self._pairs_by_split:
            folder, manifest = self._prepared
            found = read_pairs(folder, split, source=manifest.source, target=manifest.target)
            self._pairs_by_split[split] = found
        return self._pairs_by_split[split]

    @cached_property
    def _pairs_by_split(self) -> dict[str, Pairs]:
        return {}


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def on_device(sample: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated batch of fairseq with its tensors on ``device``; a no-op where they are."""
    if device.type == "cpu":
        return sample
    return {
        key: value.to(device, non_blocking=True)
        if isinstance(value, torch.Tensor)
        else on_device(value, device)
        if isinstance(value, dict)
        else value
        for key, value in sample.items()
    }


def tokenised_bleu(
    hypotheses: list[str], references: list[str], *, split_compounds: bool = False
) -> float:
    """Corpus BLEU in percent on text as it is tokenised: fairseq's scorer, multi-bleu.

    The convention of fairseq's IWSLT'14 recipe; scores with sacreBLEU's own tokeniser (13a) on
    detokenised text are not comparable. ``split_compounds`` takes hyphens within words for words of
    their own, in both, which gives higher scores (get_ende_bleu.sh; fairseq's
    compound_split_bleu.sh).
    """
    if split_compounds:
        hypotheses, references = (
            [_HYPHEN.sub(r"\1 ##AT##-##AT## \2", line) for line in lines]
            for lines in (hypotheses, references)
        )
    return float(corpus_bleu(hypotheses, [references], tokenize="none", force=True).score)
