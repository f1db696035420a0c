"""Translation with fairseq's Transformer: IWSLT'14 German-English, and any other language pair."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import torch
from sacrebleu import corpus_bleu
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_tune.errors import UserError
from knee_tune.tasks.base import Split, Task
from knee_tune.tasks.seeding import epochs_after, generator, stream_seed
from knee_tune.tasks.translation import fairseq_bridge as bridge
from knee_tune.tasks.translation.cutoff import cutoff_loss, doubled
from knee_tune.tasks.translation.prepared import (
    Codec,
    Manifest,
    asset_names,
    find_prepared,
    read_manifest,
)
from knee_tune.tasks.translation.recipe import Cutoff, TranslationRecipe
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
    """Sentence pairs of a prepared set (see :mod:`knee_tune.tasks.translation.prepared`)."""

    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint and pairs per split, of the held-out ones those that metrics are taken over.

        UserError if a file is not as it was prepared, or if a split has no pair that fits.
        """
        folder, _ = self._prepared
        manifest = read_manifest(folder, verify=True)
        measured = {split: self._measured(split) for split in get_args(Split)}
        return manifest.fingerprint, {**manifest.pairs, **measured}

    def steps_per_epoch(self, group: Group) -> int:
        """Micro-batches of one rank, in groups of ``accumulate``; the last may be smaller."""
        return math.ceil(len(self._epochs(group)) / self.recipe.accumulate)

    def build_model(self) -> nn.Module:
        """An encoder-decoder Transformer over the set's dictionaries."""
        if self.recipe.model.share_embeddings == "all" and (
            self._fairseq.source_dictionary != self._fairseq.target_dictionary
        ):
            raise UserError(
                f"recipe.model.share_embeddings=all: {self.recipe.data} has one dictionary "
                "per language; use 'decoder', or prepare the data with a joined dictionary"
            )
        return bridge.build_transformer(self._fairseq, self.recipe)

    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Batch]]:
        """This rank's micro-batches; the last group of an epoch may be shorter, on every rank."""
        epochs, dataset = self._epochs(group), self._dataset("train")
        steps, together = self.steps_per_epoch(group), self.recipe.accumulate
        stand_in = epochs.frozen_batches[0][:1]
        for epoch, left in epochs_after(start_step, steps):
            # fairseq counts epochs from 1.
            shares = epochs.ordered_batches(epoch + 1, fix_batches_to_gpus=False, shuffle=True)
            for step in left:
                yield [
                    self._collate(
                        dataset, share if len(share) else stand_in, group, counts=len(share) > 0
                    )
                    for share in shares[step * together : (step + 1) * together]
                ]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Summed label-smoothed cross-entropy and the number of target tokens.

        With Cutoff, the loss of the batch and of the same with parts cut out.
        """
        if self.recipe.cutoff is None:
            loss, _, tokens = self._losses(model, batch.sample)
        else:
            loss, tokens = self._cutoff_loss(model, batch, self.recipe.cutoff)
        return (loss, tokens) if batch.counts else (loss * 0, 0.0)

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Loss and perplexity per target token; ``final`` adds BLEU with beam search."""
        dataset = self._dataset(split)
        batches = bridge.batches_by_length(
            self._fairseq,
            dataset,
            max_tokens=self.recipe.evaluation_tokens,
            limit=self._limit(split),
        )
        sums = torch.zeros(3, dtype=torch.float64, device=group.device)
        for indices in batches[group.rank :: group.world_size]:
            group.alive()
            batch = self._collate(dataset, indices, group)
            loss, nll, tokens = self._losses(model, batch.sample)
            sums += torch.stack([loss.double(), nll.double(), sums.new_tensor(tokens)])
        loss_sum, nll_sum, token_sum = group.sum(sums.tolist())
        metrics = {"loss": loss_sum / token_sum, "ppl": _exp(nll_sum / token_sum)}
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
        dataset = bridge.sentences_as_dataset(self._fairseq, pieces)
        device = next(model.parameters()).device
        translations = [""] * len(pieces)
        for index, words, _ in self._translate(model, dataset, Group(device=device)):
            translations[index] = self._codec.decode(words) if pieces[index] else ""
        return translations

    def assets(self) -> dict[str, Path]:
        """Dictionaries, BPE codes and the manifest of the prepared set."""
        folder, manifest = self._prepared
        return {f"{folder.name}/{name}": folder / name for name in asset_names(manifest)}

    def examples(self) -> list[str]:
        """Two short source sentences of the test split; the shortest where none is usual."""
        dataset, dictionary = self._dataset("test"), self._fairseq.source_dictionary
        sources = (dataset[index]["source"] for index in range(len(dataset)))
        short = (tokens for tokens in sources if 5 <= len(tokens) <= 20)
        known = list(islice((each for each in short if dictionary.unk() not in each), 2))
        shortest = dataset.src_sizes.argsort(kind="stable")[:2]
        return [
            self._codec.decode_source(bridge.text(dictionary, tokens))
            for tokens in known or [dataset[index]["source"] for index in shortest]
        ]

    def _losses(self, model: nn.Module, sample: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
        """Sums of smoothed loss and negative log-likelihood in nats, and the target tokens.

        The forward pass goes through ``model``, which may be DistributedDataParallel, compiled or
        not; what the criterion asks of the model besides is fairseq's, so the model inside has to
        answer.
        """
        eager = getattr(model, "_orig_mod", model)  # inside what torch.compile made
        fairseq_model = eager.module if isinstance(eager, DistributedDataParallel) else eager
        output = model(**sample["net_input"])
        loss, nll = self._criterion.compute_loss(fairseq_model, output, sample)
        return loss, nll, float(sample["ntokens"])

    def _cutoff_loss(self, model: nn.Module, batch: Batch, cutoff: Cutoff) -> tuple[Tensor, float]:
        """See :func:`~knee_tune.tasks.translation.cutoff.cutoff_loss`; and the target tokens.

        What is cut depends on the seed that torch has at this step and on the pairs, not on what
        was drawn before.
        """
        words = self._fairseq.target_dictionary  # the other one has the same special symbols
        inputs = doubled(
            batch.sample["net_input"],
            cutoff,
            first_word=words.nspecial,
            unknown=words.unk(),
            embed_dim=self.recipe.model.embed_dim,
            draw=generator(torch.initial_seed(), "cutoff", batch.pair),
        )
        target = batch.sample["target"].flatten()
        tokens = (target != words.pad()).nonzero().squeeze(1)
        logits = model(**inputs, positions=torch.cat([tokens, tokens + len(target)]))
        smoothing = self.recipe.label_smoothing
        return cutoff_loss(logits, target[tokens], cutoff, smoothing=smoothing), float(len(tokens))

    def _bleu(self, model: nn.Module, group: Group, split: Split) -> float:
        mine = [
            (hypothesis, reference)
            for _, hypothesis, reference in self._translate(
                model, self._dataset(split), group, limit=self._limit(split)
            )
        ]
        shares = cast(list[list[tuple[str, str]]], group.gather(mine))
        hypotheses, references = zip(*(pair for share in shares for pair in share), strict=True)
        return tokenised_bleu(
            list(hypotheses), list(references), split_compounds=self.recipe.split_compounds
        )

    def _translate(
        self, model: nn.Module, dataset: Any, group: Group, *, limit: int | None = None
    ) -> Iterator[tuple[int, str, str]]:
        """(index in ``dataset``, best translation, reference or "") of every sentence, as words."""
        batches = bridge.batches_by_length(
            self._fairseq,
            dataset,
            max_tokens=self.recipe.evaluation_tokens,
            max_sentences=GENERATED_TOGETHER,
            limit=limit,
        )
        generator = bridge.build_generator(self._fairseq, self.recipe, model)
        target = self._fairseq.target_dictionary
        for indices in batches[group.rank :: group.world_size]:
            group.alive()
            sample = self._collate(dataset, indices, group).sample
            hypotheses, references = generator(sample), sample["target"]
            for row, index in enumerate(sample["id"].tolist()):
                reference = ""
                if references is not None:
                    tokens = references[row][references[row] != target.pad()]
                    reference = bridge.text(target, tokens.cpu(), reference=True)
                best = hypotheses[row][0]["tokens"].cpu()
                yield index, bridge.text(target, best), reference

    def _measured(self, split: Split) -> int:
        """Pairs of a split that metrics are taken over: what is too long for the model is not."""
        batches = bridge.batches_by_length(
            self._fairseq,
            self._dataset(split),
            max_tokens=self.recipe.evaluation_tokens,
            limit=self._limit(split),
        )
        count = sum(map(len, batches))
        if not count:
            raise self._nothing_fits(split)
        return count

    def _nothing_fits(self, split: str) -> UserError:
        source, target = self._fairseq.max_positions()
        return UserError(
            f"recipe.data={self.recipe.data}: no {split} pair is as short as "
            f"max_source_positions={source} and max_target_positions={target}; raise them"
        )

    def _limit(self, split: Split) -> int | None:
        return self.recipe.valid_pairs if split == "valid" else None

    def _collate(
        self, dataset: Any, indices: Sequence[int], group: Group, *, counts: bool = True
    ) -> Batch:
        sample = dataset.collater([dataset[index] for index in indices])
        return Batch(on_device(sample, group.device), int(indices[0]), counts)

    def batch_limits(self, group: Group) -> tuple[int, int]:
        """Most tokens of one rank's micro-batch, and the multiple its sentences come in."""
        shares = group.world_size * self.recipe.accumulate
        limit = self.recipe.tokens_per_step // shares
        sizes = self._dataset("train").sizes
        fitting = sizes[(sizes <= self._fairseq.max_positions()).all(axis=1)]
        if not len(fitting):
            raise self._nothing_fits("training")
        longest = int(fitting.max())
        if longest > limit:
            raise UserError(
                f"recipe.tokens_per_step={self.recipe.tokens_per_step}: {shares} micro-batches of "
                f"{limit} tokens per step cannot hold the longest sentence of {self.recipe.data} "
                f"({longest} tokens); set it to {longest * shares} or more"
            )
        # Where a multiple of the longest sentences does not fit, fairseq silently drops some.
        fits = limit >= bridge.BATCH_MULTIPLE * longest
        return limit, bridge.BATCH_MULTIPLE if fits else 1

    def _epochs(self, group: Group) -> Any:
        """fairseq's batches of the training split, dealt to the ranks."""
        place = (group.world_size, group.rank)
        if place not in self._epochs_by_place:
            limit, multiple = self.batch_limits(group)
            self._epochs_by_place[place] = bridge.epoch_batches(
                self._fairseq,
                self._dataset("train"),
                max_tokens=limit,
                multiple=multiple,
                order_seed=self.order_seed,
                shards=group.world_size,
                shard=group.rank,
            )
        return self._epochs_by_place[place]

    @property
    def order_seed(self) -> int:
        """Seed of the data order, small enough for fairseq to add the epoch to it."""
        return stream_seed(self.seed, "order") % 2**31

    @cached_property
    def _epochs_by_place(self) -> dict[tuple[int, int], Any]:
        return {}

    @cached_property
    def _prepared(self) -> tuple[Path, Manifest]:
        return find_prepared(self.data_dir, self.recipe.data, preparing=self.recipe.preparing)

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self._prepared[0])

    @cached_property
    def _fairseq(self) -> Any:
        folder, manifest = self._prepared
        return bridge.load_task(folder, manifest.source, manifest.target, self.recipe)

    @cached_property
    def _criterion(self) -> Any:
        return bridge.build_criterion(self._fairseq, self.recipe)

    def _dataset(self, split: str) -> Any:
        if split not in self._fairseq.datasets:
            self._fairseq.load_dataset(split)
        return self._fairseq.dataset(split)


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
