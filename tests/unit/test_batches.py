"""Batches of sentence pairs by their tokens."""

import numpy as np
import pytest

from knee_tune.tasks.translation.batches import Epochs, Pairs, batches_by_length, collate, cut
from knee_tune.tasks.translation.binary import Sentences
from knee_tune.workers.group import Group


def ends(*lengths: int, max_tokens: int, multiple: int = 1, max_sentences: int = 0) -> list[int]:
    found = np.array(lengths, np.int32)
    return cut(found, max_tokens=max_tokens, multiple=multiple, max_sentences=max_sentences)


def test_a_batch_is_full_when_its_longest_sentence_times_its_sentences_is_too_much() -> None:
    assert ends(2, 2, 3, 3, 3, 5, max_tokens=9) == [3, 5, 6]
    assert ends(2, 2, 2, 2, max_tokens=100, max_sentences=3) == [3, 4]
    assert ends(max_tokens=9) == []


def test_sentences_that_make_no_multiple_begin_the_next_batch() -> None:
    # Five would fit; of them four are a multiple of two.
    assert ends(*[2] * 9, max_tokens=10, multiple=2) == [4, 8, 9]
    assert ends(*[1] * 3, max_tokens=10, multiple=8) == [3]


def pairs_of(count: int) -> Pairs:
    """Sources of 2 to 6 tokens, targets of 2 to 4."""
    sides = ([[4] * (1 + place % each) + [2] for place in range(count)] for each in (5, 3))
    return Pairs(*map(Sentences.of, sides))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_epoch_deals_every_pair_that_fits_once(ranks: int) -> None:
    epochs = Epochs(pairs_of(40), max_tokens=12, multiple=1, most=(5, 9), seed=3)
    groups = [Group(rank, ranks) for rank in range(ranks)]
    shares = [epochs.shares(0, group) for group in groups]
    assert {len(share) for share in shares} == {epochs.steps(groups[0])}
    dealt = [index for share in shares for batch in share for index in batch.tolist()]
    assert sorted(dealt) == [index for index in range(40) if index % 5 != 4]
    assert [each.tolist() for each in shares[0]] != [
        each.tolist() for each in epochs.shares(1, groups[0])
    ]


def test_fewer_pairs_are_spread_over_the_split() -> None:
    (batch,) = batches_by_length(pairs_of(40), max_tokens=100, most=(9, 9), limit=4)
    assert sorted(batch.tolist()) == [0, 13, 26, 39]


def test_sources_are_padded_left_and_targets_right_and_shifted() -> None:
    pairs = Pairs(Sentences.of([[5, 2], [6, 7, 2]]), Sentences.of([[8, 9, 2], [4, 2]]))
    sample = collate(pairs, [0, 1])
    assert sample["id"].tolist() == [1, 0]  # the longest source first
    assert sample["net_input"]["src_tokens"].tolist() == [[6, 7, 2], [1, 5, 2]]
    assert sample["target"].tolist() == [[4, 2, 1], [8, 9, 2]]
    assert sample["net_input"]["prev_output_tokens"].tolist() == [[2, 4, 1], [2, 8, 9]]
    assert sample["ntokens"] == 5
