"""Cutoff (Shen et al., 2020): a batch beside itself with parts cut out, and the loss of both.

What the published code takes for the Jensen-Shannon divergence is another one: it compares both
predictions p and q with the softmax m of their mean scores, (KL(m|p) + KL(m|q)) / 2. That is the
Bhattacharyya distance -log sum sqrt(p q), and nothing but that sum needs to be computed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from knee_tune.tasks.translation.recipe import Cutoff


def doubled(
    inputs: Mapping[str, Tensor],
    cutoff: Cutoff,
    *,
    first_word: int,
    unknown: int,
    embed_dim: int,
    draw: torch.Generator,
) -> dict[str, Any]:
    """Return the model's inputs for a batch (first half) and for the same with parts cut out.

    ``inputs`` are fairseq's ``net_input``. Words have the ids from ``first_word``; only they are
    cut, never padding or an end of sentence. All that is drawn comes from ``draw``, a generator on
    the CPU.
    """
    source, target = inputs["src_tokens"], inputs["prev_output_tokens"]
    sides = cut = [source, target]
    kept: dict[str, Any] = {}
    if cutoff.kind == "feature":
        ones = torch.ones(len(source), 1, embed_dim)
        drawn = [kept_features(len(source), embed_dim, cutoff.share, draw) for _ in sides]
        kept["kept"] = tuple(torch.cat([ones, each]).to(source.device) for each in drawn)
    else:
        chosen = [words_to_cut(side >= first_word, cutoff, draw) for side in sides]
        cut = [side.masked_fill(words, unknown) for side, words in zip(sides, chosen, strict=True)]
    return {
        "src_tokens": torch.cat([source, cut[0]]),
        "src_lengths": inputs["src_lengths"].repeat(2),
        "prev_output_tokens": torch.cat([target, cut[1]]),
        **kept,
    }


def words_to_cut(words: Tensor, cutoff: Cutoff, draw: torch.Generator) -> Tensor:
    """Choose among ``words`` (sentences, length), which says where there are any.

    ``token``: each with probability ``share``. ``span``: one run in every sentence, of that share
    of its words and of one at least.
    """
    if cutoff.kind == "token":
        return words & (torch.rand(words.shape, generator=draw) < cutoff.share).to(words.device)
    count = words.sum(1, keepdim=True)
    length = (cutoff.share * count).round().clamp(min=1)
    anywhere = torch.rand(len(words), 1, generator=draw).to(words.device)
    number = words.cumsum(1) - 1 - (anywhere * (count - length + 1)).floor()
    return words & (number >= 0) & (number < length)


def kept_features(sentences: int, dims: int, share: float, draw: torch.Generator) -> Tensor:
    """Zeros for a ``share`` of the dimensions of every sentence, ones else: (sentences, 1, dims).

    One dimension at least is zero.
    """
    rank = torch.rand(sentences, 1, dims, generator=draw).argsort().argsort()
    return (rank >= max(1, round(share * dims))).float()


def cutoff_loss(logits: Tensor, target: Tensor, cutoff: Cutoff, *, smoothing: float) -> Tensor:
    """Return the loss of a doubled batch, summed over its n target tokens.

    ``logits`` (2n, types): of the pairs as they are, then of those with parts cut out; ``target``
    (n,) int64. The cross-entropy is smoothed as fairseq's.
    """
    logs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    plain, cut = logs.chunk(2)
    loss = _cross_entropy(plain, target, smoothing)
    if cutoff.weight:
        loss = loss + cutoff.weight * _cross_entropy(cut, target, smoothing)
    if cutoff.consistency_weight:
        divergence = bhattacharyya if cutoff.consistency == "reference" else jensen_shannon
        loss = loss + cutoff.consistency_weight * divergence(plain, cut).sum()
    return loss


def bhattacharyya(left: Tensor, right: Tensor) -> Tensor:
    """Distance (n,) of log-probabilities (n, types) in nats: -log sum sqrt(p q)."""
    return -torch.logsumexp((left + right) / 2, dim=-1)


def jensen_shannon(left: Tensor, right: Tensor) -> Tensor:
    """Divergence (n,) of log-probabilities (n, types) in nats."""
    p, q = left.exp(), right.exp()
    mean = (p + q) / 2
    return ((p * left + q * right) / 2 - torch.xlogy(mean, mean)).sum(-1)


def _cross_entropy(logs: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """fairseq's: every type but the right one gets its part of ``smoothing``."""
    other = smoothing / (logs.shape[-1] - 1)
    right = logs.gather(1, target.unsqueeze(1)).sum()
    return -(1 - smoothing - other) * right - other * logs.sum()
