"""Cutoff's loss against the formula written out, what it cuts, and what its recipe refuses."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from knee_tune.tasks.seeding import generator
from knee_tune.tasks.translation.cutoff import (
    cutoff_loss,
    doubled,
    kept_features,
    words_to_cut,
)
from knee_tune.tasks.translation.recipe import Cutoff, TranslationRecipe

PAD, EOS, UNKNOWN, FIRST_WORD = 1, 2, 3, 4
SMOOTHING = 0.1


def scores(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed, "scores"))


def written_out(left: Tensor, right: Tensor, target: Tensor, cutoff: Cutoff) -> float:
    """Token by token and type by type."""
    loss = 0.0
    for x, y, right_one in zip(left, right, target.tolist(), strict=True):
        p, q = x.softmax(0), y.softmax(0)
        types = len(x)
        wanted = [SMOOTHING / (types - 1)] * types
        wanted[right_one] = 1 - SMOOTHING
        for each, weight in ((p, 1.0), (q, cutoff.weight)):
            loss -= weight * sum(w * float(each[i].log()) for i, w in enumerate(wanted))
        if cutoff.consistency == "reference":
            mean = ((x + y) / 2).softmax(0)
            pairs = [(mean, p), (mean, q)]
        else:
            mean = (p + q) / 2
            pairs = [(p, mean), (q, mean)]
        divergences = [float((a * (a / b).log()).sum()) for a, b in pairs]
        loss += cutoff.consistency_weight * sum(divergences) / 2
    return loss


@pytest.mark.parametrize("consistency", ["reference", "exact"])
def test_the_loss_is_the_formula(consistency: str) -> None:
    cutoff = Cutoff.model_validate({"consistency": consistency, "weight": 0.7})
    both, target = scores(1, 12, 9), torch.tensor([4, 8, 2, 5, 5, 0])

    ours = cutoff_loss(both, target, cutoff, smoothing=SMOOTHING)

    assert float(ours) == pytest.approx(written_out(both[:6], both[6:], target, cutoff), rel=1e-9)


@pytest.mark.parametrize("consistency", ["reference", "exact"])
def test_its_gradient_is_that_of_the_loss(consistency: str) -> None:
    cutoff = Cutoff.model_validate({"consistency": consistency, "weight": 0.7})
    both, target = scores(1, 6, 9).requires_grad_(), torch.tensor([4, 8, 0])

    def loss(both: Tensor) -> Tensor:
        return cutoff_loss(both, target, cutoff, smoothing=SMOOTHING)

    assert torch.autograd.gradcheck(loss, both)


@pytest.mark.parametrize("consistency", ["reference", "exact"])
def test_certain_predictions_have_a_finite_gradient(consistency: str) -> None:
    cutoff = Cutoff.model_validate({"consistency": consistency})
    both = torch.tensor([[300.0, 0, 0], [0, 300.0, 0]], requires_grad=True)
    cutoff_loss(both, torch.tensor([0]), cutoff, smoothing=0).backward()  # type: ignore[no-untyped-call]
    assert both.grad is not None
    assert both.grad.isfinite().all()


def batch() -> dict[str, Tensor]:
    """Two sentences, the shorter one padded as fairseq does: source left, target right."""
    return {
        "src_tokens": torch.tensor([[4, 5, 6, 7, 8, 9, EOS], [PAD, PAD, PAD, 6, 3, 7, EOS]]),
        "src_lengths": torch.tensor([7, 4]),
        "prev_output_tokens": torch.tensor([[EOS, 9, 8, 7, 6], [EOS, 4, 5, PAD, PAD]]),
    }


@pytest.mark.parametrize("kind", ["token", "span"])
def test_words_become_unknown_and_nothing_else_does(kind: str) -> None:
    cutoff = Cutoff.model_validate({"kind": kind, "share": 0.6})
    found = doubled(
        before := batch(),
        cutoff,
        first_word=FIRST_WORD,
        unknown=UNKNOWN,
        embed_dim=8,
        draw=generator(1, "cut"),
    )
    for side in ("src_tokens", "prev_output_tokens"):
        plain, cut = found[side].chunk(2)
        assert torch.equal(plain, before[side])
        changed = cut != plain
        assert changed.any()
        assert not changed[plain < FIRST_WORD].any()
        assert (cut[changed] == UNKNOWN).all()
    assert found["src_lengths"].tolist() == [7, 4, 7, 4]


def test_a_span_is_one_run_of_that_share_of_the_words() -> None:
    words = torch.ones(400, 22, dtype=torch.bool)
    words[:, 0] = words[:, 15] = False  # no words at these places
    cut = words_to_cut(words, Cutoff(kind="span", share=0.2), generator(1, "cut"))
    for row in cut[words].view(400, 20):
        (places,) = row.nonzero(as_tuple=True)
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + 4))
    starts = {int(row.nonzero()[0]) for row in cut[words].view(400, 20)}
    assert {0, 16} <= starts


def test_features_are_zeroed_for_a_whole_sentence() -> None:
    kept = kept_features(6, 20, 0.1, generator(1, "cut"))
    assert kept.shape == (6, 1, 20)
    assert (kept == 0).sum(-1).flatten().tolist() == [2] * 6
    assert kept_features(1, 4, 0.01, generator(1, "cut")).sum() == 3


@pytest.mark.parametrize(
    ("cutoff", "problem"),
    [
        ({"kind": "word"}, "'token', 'span' or 'feature'"),
        ({"share": 1}, "less than 1"),
        ({"share": 0}, "greater than 0"),
        ({"weight": 0, "consistency_weight": 0}, "nothing would come of it"),
        ({"consistency": "none"}, "'reference' or 'exact'"),
        ({"p": 0.1}, "p"),
    ],
)
def test_what_cutoff_refuses(cutoff: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TranslationRecipe.model_validate({"cutoff": cutoff})


def test_runs_without_cutoff_are_those_of_before() -> None:
    stored = TranslationRecipe().model_dump(mode="json")
    assert "family" not in stored["model"]
    assert not {"cutoff", "split_compounds"} & stored.keys()
    chosen = TranslationRecipe(cutoff=Cutoff(), split_compounds=True).model_dump(mode="json")
    assert TranslationRecipe.model_validate(chosen).cutoff == Cutoff()
    assert {"cutoff", "split_compounds"} <= chosen.keys()
