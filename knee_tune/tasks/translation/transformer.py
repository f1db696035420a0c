"""The encoder-decoder Transformer of fairseq's ``transformer_iwslt_de_en``, with nothing but torch.

Post-norm layers, sinusoidal positions, ReLU; embeddings and matrices start as fairseq's do. With
fairseq's weights it gives fairseq's scores.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.tasks.translation.beam_search import beam_search
from knee_tune.tasks.translation.family import Sample
from knee_tune.tasks.translation.prepared import Manifest
from knee_tune.tasks.translation.recipe import TransformerSize, TranslationRecipe
from knee_tune.tasks.translation.vocabulary import PAD

FIRST_POSITION = PAD + 1
"""Of a sentence's first token, in fairseq's count."""


class Attention(nn.Module):
    """Attention of some positions to others: (sentences, time, embed_dim) as what it reads."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.attention_dropout
        self.query = nn.Linear(size.embed_dim, size.embed_dim)
        self.memory = nn.Linear(size.embed_dim, 2 * size.embed_dim)
        self.output = nn.Linear(size.embed_dim, size.embed_dim)
        # Xavier's rule for three matrices in one, whatever is beside what here.
        bound = math.sqrt(1.5 / size.embed_dim)
        for matrix in (self.query.weight, self.memory.weight):
            nn.init.uniform_(matrix, -bound, bound)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def keys_values(self, x: Tensor) -> Tensor:
        """What can be attended to: (sentences, 2, heads, time, width of a head)."""
        both: Tensor = self.memory(x)
        return both.view(*x.shape[:2], 2, self.heads, -1).movedim(1, 3)

    def forward(
        self, x: Tensor, keys_values: Tensor, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Mix; ``mask`` (sentences, 1, 1, time) is true where there is something to attend to."""
        queries = self.query(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        keys, values = keys_values.unbind(1)
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class FeedForward(nn.Sequential):
    """Two layers with ReLU, at every position alone."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__(
            nn.Linear(size.embed_dim, size.ffn_dim),
            nn.ReLU(),
            nn.Dropout(size.activation_dropout),
            nn.Linear(size.ffn_dim, size.embed_dim),
        )


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to what it reads, then LayerNorm."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(size), FeedForward(size)
        self.norms = nn.ModuleList(nn.LayerNorm(size.embed_dim) for _ in range(2))
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(sentences, time, embed_dim) -> the same."""
        attended = self.attention(x, self.attention.keys_values(x), mask=mask)
        x = self.norms[0](x + self.dropout(attended))
        output: Tensor = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return output


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, a feed-forward network; each as above."""

    def __init__(self, size: TransformerSize) -> None:
        super().__init__()
        self.attention, self.source_attention = Attention(size), Attention(size)
        self.feed_forward = FeedForward(size)
        self.norms = nn.ModuleList(nn.LayerNorm(size.embed_dim) for _ in range(3))
        self.dropout = nn.Dropout(size.dropout)

    def forward(
        self, x: Tensor, keys_values: Tensor, source: Tensor, mask: Tensor, *, causal: bool
    ) -> Tensor:
        """Read ``keys_values`` of the target, and those of the ``source`` where ``mask`` is."""
        x = self.norms[0](x + self.dropout(self.attention(x, keys_values, causal=causal)))
        attended = self.source_attention(x, source, mask=mask)
        x = self.norms[1](x + self.dropout(attended))
        output: Tensor = self.norms[2](x + self.dropout(self.feed_forward(x)))
        return output


class Transformer(nn.Module):
    """Source and target tokens (sentences, time) int64 -> scores of the next target token.

    A layer that two uses share is one parameter under one name.
    """

    def __init__(self, size: TransformerSize, *, sources: int, targets: int) -> None:
        super().__init__()
        shared = size.share_embeddings
        self.target = _embedding(targets, size.embed_dim)
        self.source = None if shared == "all" else _embedding(sources, size.embed_dim)
        self.output = None if shared != "none" else nn.Linear(size.embed_dim, targets, bias=False)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=size.embed_dim**-0.5)
        self.dropout = nn.Dropout(size.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(size) for _ in range(size.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(size) for _ in range(size.decoder_layers))

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        *,
        positions: Tensor | None = None,
        kept: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """See :meth:`~knee_tune.tasks.translation.family.Family.build_model`.

        Sources are padded left and targets right, so the target needs no mask.
        """
        source_kept, target_kept = kept or (None, None)
        encoded, mask = self.encode(src_tokens, kept=source_kept)
        x = self.embed_targets(prev_output_tokens, kept=target_kept)
        for layer in self.decoder_layers:
            target, source = layer.attention, layer.source_attention
            x = layer(x, target.keys_values(x), source.keys_values(encoded), mask=mask, causal=True)
        return self.scores(x if positions is None else x.flatten(0, 1)[positions])

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers of the decoder, as what they are."""
        return cast(list[DecoderLayer], list(self.decoder))

    def encode(self, tokens: Tensor, *, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the decoder reads (sentences, time, embed_dim), and where it is no padding."""
        present = tokens != PAD
        places = PAD + present.cumsum(1)
        embedding = self.target if self.source is None else self.source
        last = PAD + tokens.shape[1]
        x = self._embed(embedding, tokens, places, last, kept) * present.unsqueeze(-1)
        mask = present[:, None, None]
        for layer in self.encoder:
            x = layer(x, mask)
        return x, mask

    def embed_targets(
        self, tokens: Tensor, *, start: int = 0, kept: Tensor | None = None
    ) -> Tensor:
        """What the decoder starts from, of tokens of which the first is number ``start``."""
        last = PAD + start + tokens.shape[1]
        places = torch.arange(FIRST_POSITION + start, last + 1, device=tokens.device)
        return self._embed(self.target, tokens, places, last, kept)

    def scores(self, x: Tensor) -> Tensor:
        """Scores (..., types), before the softmax."""
        return F.linear(x, (self.target if self.output is None else self.output).weight)

    def _embed(
        self,
        embedding: nn.Embedding,
        tokens: Tensor,
        places: Tensor,
        last: int,
        kept: Tensor | None,
    ) -> Tensor:
        x, dims = embedding(tokens), embedding.embedding_dim
        if kept is not None:
            x = x * kept
        table = sinusoids(last + 1, dims, like=x)
        embedded: Tensor = self.dropout(math.sqrt(dims) * x + table[places])
        return embedded


def sinusoids(places: int, dims: int, *, like: Tensor) -> Tensor:
    """Position vectors (places, dims): sines of falling frequencies, then their cosines."""
    half = dims // 2
    steps = torch.arange(half, device=like.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10_000) / max(1, half - 1) * steps)
    angles = torch.arange(places, device=like.device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1).to(like.dtype)


def _embedding(types: int, dims: int) -> nn.Embedding:
    embedding = nn.Embedding(types, dims, padding_idx=PAD)
    nn.init.normal_(embedding.weight, std=dims**-0.5)
    nn.init.zeros_(embedding.weight[PAD])
    return embedding


class OurTransformer:
    """A :class:`~knee_tune.tasks.translation.family.Family` of this model and its beam search."""

    def __init__(self, recipe: TranslationRecipe, manifest: Manifest) -> None:
        self._recipe, self._manifest = recipe, manifest

    def build_model(self) -> nn.Module:
        """See :class:`Family`."""
        types, pair = self._manifest.vocabulary, (self._manifest.source, self._manifest.target)
        sources, targets = (types[language] for language in pair)
        return Transformer(self._recipe.model, sources=sources, targets=targets)

    def losses(self, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
        """See :class:`Family`; smoothed as fairseq does, over the other types alone."""
        target = sample["target"].flatten()
        tokens = (target != PAD).nonzero().squeeze(1)
        scores = model(**sample["net_input"], positions=tokens)
        log_chances = F.log_softmax(scores, dim=-1, dtype=torch.float32)
        nll = F.nll_loss(log_chances, target[tokens], reduction="sum")
        each = self._recipe.label_smoothing / (scores.shape[-1] - 1)
        loss = (1 - self._recipe.label_smoothing - each) * nll - each * log_chances.sum()
        return loss, nll

    def translate(self, model: nn.Module, sample: Sample) -> list[Tensor]:
        """See :class:`Family`."""
        sources, recipe = sample["net_input"]["src_tokens"], self._recipe
        assert isinstance(model, Transformer)
        most = int(recipe.max_len_a * sources.shape[1] + recipe.max_len_b)
        return beam_search(
            model,
            sources,
            beam=recipe.beam,
            len_penalty=recipe.len_penalty,
            most=min(most, recipe.max_target_positions - 1),
        )
