"""Batched beam search, as fairseq's generator searches: with its scores, the same translations."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from knee_tune.tasks.translation.vocabulary import EOS, PAD

if TYPE_CHECKING:
    from knee_tune.tasks.translation.transformer import Transformer


class _Prefixes:
    """The translations that are being made, in rows, ``beam`` of them a sentence.

    Of the target tokens that were read, every layer keeps what later ones attend to.
    """

    def __init__(self, model: "Transformer", sources: Tensor, beam: int) -> None:
        encoded, mask = model.encode(sources)
        self._model, self._mask = model, mask.repeat_interleave(beam, 0)
        self._sources = [
            layer.source_attention.keys_values(encoded).repeat_interleave(beam, 0)
            for layer in model.decoder_layers
        ]
        self._targets: list[Tensor] = []
        self.tokens = sources.new_full((len(self._mask), 1), EOS)
        """(rows, time): the mark that every target starts with, and what was chosen."""

    def log_chances(self) -> Tensor:
        """Of every next token, (rows, types) float32; the last one of ``tokens`` is read now."""
        x = self._model.embed_targets(self.tokens[:, -1:], start=self.tokens.shape[1] - 1)
        read = []
        for number, layer in enumerate(self._model.decoder_layers):
            target = layer.attention.keys_values(x)
            if self._targets:
                target = torch.cat([self._targets[number], target], dim=3)
            read.append(target)
            x = layer(x, target, self._sources[number], mask=self._mask, causal=False)
        self._targets = read
        return torch.log_softmax(self._model.scores(x[:, 0]).float(), dim=-1)

    def go_on(self, rows: Tensor, tokens: Tensor) -> None:
        """Keep these rows, in this order, each with one more token; a row may stay twice."""
        self.tokens = torch.cat([self.tokens[rows], tokens[:, None]], dim=1)
        self._targets = [each[rows] for each in self._targets]
        self._sources = [each[rows] for each in self._sources]
        self._mask = self._mask[rows]


def beam_search(
    model: "Transformer", sources: Tensor, *, beam: int, len_penalty: float, most: int
) -> list[Tensor]:
    """The best translation of every source (sentences, time), ids (tokens,) on the CPU.

    It is the one with the highest log-likelihood over its length to the power ``len_penalty``, of
    the first ``beam`` that end. None is longer than ``most`` tokens and the end of the sentence, or
    empty.
    """
    best: list[tuple[float, Tensor]] = [(-math.inf, torch.tensor([EOS]))] * len(sources)
    ended = [0] * len(sources)
    live = list(range(len(sources)))
    prefixes = _Prefixes(model, sources, beam)
    total = torch.zeros(len(live), beam, 1, device=sources.device)
    for step in range(most + 1):
        log_chances = prefixes.log_chances().view(len(live), beam, -1)
        if step == most:
            only_end = torch.full_like(log_chances, -math.inf)
            only_end[..., EOS] = log_chances[..., EOS]
            log_chances = only_end
        else:
            log_chances[..., [PAD, *([EOS] if step == 0 else [])]] = -math.inf
        every = (total + log_chances)[:, : 1 if step == 0 else beam]  # at first all rows are alike
        types, every = every.shape[2], every.flatten(1)
        values, places = every.topk(min(2 * beam, every.shape[1] - 1))
        rows, tokens = places // types, places % types
        ends = (tokens == EOS) & values.isfinite()
        for index, rank in ends[:, :beam].nonzero().tolist():
            sentence = live[index]
            if ended[sentence] < beam:
                ended[sentence] += 1
                score = float(values[index, rank]) / (step + 1) ** len_penalty
                if score > best[sentence][0]:
                    row = index * beam + int(rows[index, rank])
                    end = prefixes.tokens.new_tensor([EOS])
                    best[sentence] = score, torch.cat([prefixes.tokens[row, 1:], end])
        going = [index for index, sentence in enumerate(live) if ended[sentence] < beam]
        if step == most or not going:
            break
        # Of every sentence that goes on the likeliest prefixes that have not ended.
        chosen = ends.long().argsort(dim=1, stable=True)[going, :beam]
        offsets = torch.tensor(going, device=rows.device)[:, None] * beam
        prefixes.go_on(
            (rows[going].gather(1, chosen) + offsets).flatten(),
            tokens[going].gather(1, chosen).flatten(),
        )
        total = values[going].gather(1, chosen).unsqueeze(2)
        live = [live[index] for index in going]
    return [tokens.cpu() for _, tokens in best]
