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
    loss: Tensor = _WithGradient.apply(logits, target, cutoff, smoothing)
    return loss


class _WithGradient(torch.autograd.Function):
    """The loss with its gradient: autograd would pass over the vocabulary twice as often."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, cutoff: Cutoff, smoothing: float) -> Any:
        precise = torch.promote_types(logits.dtype, torch.float32)
        loss, gradient = loss_and_gradient(
            F.log_softmax(logits, dim=-1, dtype=precise), target, cutoff, smoothing
        )
        ctx.save_for_backward(gradient.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None


def loss_and_gradient(
    logs: Tensor, target: Tensor, cutoff: Cutoff, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the loss of log-probabilities ``logs`` (2n, types), and its gradient by the scores."""
    halves = logs.view(2, len(target), -1)
    right = target.expand(2, -1).unsqueeze(-1)
    weights = halves.new_tensor([1, cutoff.weight]).view(2, 1, 1)
    # fairseq's smoothing: every type but the right one gets its part
    other = smoothing / (halves.shape[-1] - 1)
    more = 1 - smoothing - other
    hits, alls = (each.sum((1, 2), keepdim=True) for each in (halves.gather(2, right), halves))
    loss = -(weights * (more * hits + other * alls)).sum()
    gradient = halves.exp()
    half = cutoff.consistency_weight / 2
    if not half:
        gradient *= weights
    elif cutoff.consistency == "reference":
        mean = halves.mean(0)
        total = mean.logsumexp(-1, keepdim=True)
        loss = loss - 2 * half * total.sum()
        gradient.mul_(weights + half).sub_(mean.sub_(total).exp_(), alpha=half)
    else:
        smallest = torch.finfo(logs.dtype).tiny  # where both are 0 nothing is added
        ratio = halves - gradient.mean(0).clamp_(min=smallest).log_()
        apart = torch.linalg.vecdot(gradient, ratio).unsqueeze(-1)
        loss = loss + half * apart.sum()
        gradient *= ratio.mul_(half).add_(weights - half * apart)
    gradient -= weights * other
    gradient.scatter_add_(2, right, -(weights * more).expand_as(right))
    return loss, gradient.view_as(logs)
