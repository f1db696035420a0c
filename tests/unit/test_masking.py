"""What BERT is asked: full inputs of a text's documents, 15 % of whose tokens are to be guessed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("tokenizers", reason="needs the language extra")

from knee_tune.tasks.bert.masking import NOT_GUESSED, Inputs, Masking, Stream
from knee_tune.tasks.bert.wordpiece import Specials
from knee_tune.testing import same

SPECIALS = Specials(padding=0, unknown=1, first=2, between=3, mask=4)
WORDS = 1000
"""Tokens; those from 5 on are words."""
LENGTHS = np.array([40, 3, 25, 90, 1, 61], dtype=np.int64)
TEXT = np.arange(5, 5 + LENGTHS.sum(), dtype=np.uint16)
"""Every token of it is another one."""


def stream(order: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> Stream:
    chosen = np.array(order)
    starts = np.cumsum(LENGTHS) - LENGTHS
    return Stream(TEXT, starts[chosen], LENGTHS[chosen], between=SPECIALS.between)


def asked(length: int = 20, *, paired: bool = False, seed: int = 1, **more: Any) -> Inputs:
    masking = Masking(SPECIALS, vocabulary=WORDS, length=length, paired=paired)
    numbers = torch.arange(masking.count(len(stream())))
    return masking.inputs(stream(), numbers, torch.Generator().manual_seed(seed), **more)


def truth(inputs: Inputs) -> Tensor:
    """What the model would see if nothing were to be guessed."""
    answers = torch.where(
        inputs.labels == NOT_GUESSED, inputs.tokens.gather(1, inputs.places), inputs.labels
    )
    return inputs.tokens.scatter(1, inputs.places, answers)


def test_documents_stand_behind_each_other_in_their_order() -> None:
    order = (3, 1, 0)
    found = stream(order)
    assert len(found) == 90 + 3 + 40 + 3
    ends, wanted = np.cumsum(LENGTHS), list[int]()
    for number in order:
        wanted += [*TEXT[ends[number] - LENGTHS[number] : ends[number]], SPECIALS.between]
    assert found.at(torch.arange(len(found))).tolist() == wanted


def test_inputs_are_full_and_hold_the_text_once() -> None:
    inputs = asked()
    assert inputs.tokens.shape == inputs.segments.shape == (len(stream()) // 18, 20)
    whole = truth(inputs)
    assert (whole[:, 0] == SPECIALS.first).all()
    assert (whole[:, -1] == SPECIALS.between).all()
    text = stream().at(torch.arange(whole[:, 1:-1].numel()))
    assert whole[:, 1:-1].flatten().tolist() == text.tolist()
    assert not inputs.segments.any()


def test_fifteen_percent_are_guessed_and_never_what_is_between_documents() -> None:
    inputs = asked()
    assert inputs.places.shape[1] == round(0.15 * 18)
    assert all(len({*row}) == len(row) for row in inputs.places.tolist())
    assert inputs.guesses == inputs.labels.numel()
    assert (inputs.labels > SPECIALS.mask).all()


def test_eighty_percent_are_masked_and_ten_replaced() -> None:
    many = [asked(seed=seed) for seed in range(60)]
    shown = torch.cat([each.tokens.gather(1, each.places).flatten() for each in many])
    labels = torch.cat([each.labels.flatten() for each in many])
    masked, stays = shown == SPECIALS.mask, shown == labels
    assert float(masked.float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(stays.float().mean()) == pytest.approx(0.1, abs=0.03)
    assert len(shown) > 1500


def test_the_second_part_follows_or_is_from_elsewhere() -> None:
    inputs = asked(30, paired=True, seed=2)  # of a short text, chance may find what follows
    for tokens, segments, follows in zip(
        truth(inputs).tolist(), inputs.segments.tolist(), inputs.follows.tolist(), strict=True
    ):
        cut = segments.index(1)
        first, second = tokens[1 : cut - 1], tokens[cut:-1]
        assert (tokens[0], tokens[cut - 1], tokens[-1]) == (2, 3, 3)
        assert sorted(segments) == segments
        at = stream().at(torch.arange(len(stream()))).tolist()
        begin = next(n for n in range(len(at)) if at[n : n + len(first)] == first)
        goes_on = at[begin + len(first) :][: len(second)] == second
        assert goes_on == (follows == 0)
    assert 0 < int(inputs.follows.sum()) < len(inputs.follows)


def test_a_share_is_the_rows_of_the_whole() -> None:
    whole = asked(paired=True)
    for rank in range(3):
        mine = asked(paired=True, mine=slice(rank, None, 3))
        assert same(mine.tokens, whole.tokens[rank::3])
        assert same(mine.labels, whole.labels[rank::3])
    assert sum(part.guesses for part in whole.parts(4)) == whole.guesses


def test_what_has_too_little_to_guess_guesses_less() -> None:
    one = np.array([1] * 30)
    words = Stream(TEXT, np.arange(30), one, between=SPECIALS.between)
    masking = Masking(SPECIALS, vocabulary=WORDS, length=100, paired=False)
    masking.guesses = 60
    inputs = masking.inputs(words, torch.arange(0), torch.Generator())
    assert (len(inputs.tokens), inputs.guesses) == (0, 0)
    masking = Masking(SPECIALS, vocabulary=WORDS, length=12, paired=False)
    masking.guesses = 8
    inputs = masking.inputs(words, torch.arange(6), torch.Generator().manual_seed(1))
    assert inputs.guesses == 6 * 5
    assert (inputs.labels == NOT_GUESSED).sum() == 6 * 3
    assert (truth(inputs)[:, 2::2] == SPECIALS.between).all()
