"""Windows over question and paragraph, and the answers that are read off them."""

from pathlib import Path

import pytest

pytest.importorskip("tokenizers", reason="needs the language extra")

import torch
from torch import Tensor

from knee_tune.tasks.bert.squad_metric import exact_match, f1
from knee_tune.tasks.bert.squad_recipe import SquadRecipe
from knee_tune.tasks.bert.squad_text import Answer, Question, questions_of, read_articles
from knee_tune.tasks.bert.squad_windows import Windows
from knee_tune.tasks.bert.wordpiece import SPECIAL, read_vocabulary, wordpiece

WORDS = [f"w{number}" for number in range(100)]
TOKENIZER = wordpiece([*SPECIAL, "who", "?", *WORDS])
CONTEXT = " ".join(WORDS)
ROOM = 35
"""Tokens of the paragraph in a window beside "who ?"."""


def windows(*answers: str, context: str = CONTEXT, **recipe: int) -> Windows:
    """Of one question for every answer."""
    settings = {"max_length": 40, "max_question_length": 5, "stride": 20, **recipe}
    questions = [
        Question(
            answer, "Who?", context, (Answer(answer_start=context.index(answer), text=answer),)
        )
        for answer in answers
    ]
    return Windows(questions, TOKENIZER, SquadRecipe.model_validate(settings))


def certain(made: Windows) -> Tensor:
    """Logits of all windows that are sure of the labels, and of nothing where there is none."""
    batch = made.batch(range(len(made)))
    logits = torch.zeros(*batch.tokens.shape, 2)
    for row, labels in enumerate(zip(batch.starts.tolist(), batch.ends.tolist(), strict=True)):
        if any(labels):
            logits[row, labels[0], 0] = logits[row, labels[1], 1] = 9.0
    return logits


def answers(made: Windows, logits: Tensor) -> list[list[str]]:
    """The n best answers of every question."""
    found = made.spans(range(len(made)), logits)
    pooled = [
        [
            span
            for window, spans in zip(made.windows, found, strict=True)
            if window.number == number
            for span in spans
        ]
        for number in range(len(made.questions))
    ]
    return [made.answers(number, spans) for number, spans in enumerate(pooled)]


def test_windows_overlap_and_hold_the_whole_paragraph() -> None:
    made = windows("w37 w38")
    assert [(window.begin, window.end) for window in made.windows] == [
        (0, ROOM), (20, 20 + ROOM), (40, 40 + ROOM), (60, 60 + ROOM), (80, 100)
    ]  # fmt: skip
    batch = made.batch([1, 4])
    first, second = batch.tokens.tolist()
    assert first[:5] == [2, 5, 6, 3, 7 + 20]
    assert (first[-1], len(first)) == (3, 40)
    assert second[4:25] == [*range(7 + 80, 7 + 100), 3]
    assert set(second[25:]) == {0}
    assert batch.mask.sum(1).tolist() == [40, 25]
    assert batch.segments.sum(1).tolist() == [ROOM + 1, 21]


def test_labels_are_the_answers_place_or_the_first_token_where_it_is_not_whole() -> None:
    made = windows("w34 w35 w36")
    assert [window.labels for window in made.windows] == [
        (0, 0), (4 + 14, 4 + 16), (0, 0), (0, 0), (0, 0)
    ]  # fmt: skip


def test_answers_are_the_best_spans_of_all_windows_as_they_stand_in_the_paragraph() -> None:
    made = windows("w37 w38", "w99", n_best=3)
    (first, *others), (last, *_) = answers(made, certain(made))
    assert (first, last) == ("w37 w38", "w99")
    assert len(others) == 2


def test_answers_are_no_longer_than_asked_and_end_after_they_begin() -> None:
    made = windows("w5", max_answer_length=2)
    logits = torch.zeros(len(made), 40, 2)
    logits[0, 10, 0] = logits[0, 9, 1] = 9.0  # an end before its start
    logits[0, 12, 1] = 8.0  # too far away
    logits[0, 11, 1] = 1.0
    logits[0, 1, :] = 99.0  # in the question
    assert answers(made, logits)[0][0] == "w6 w7"


def test_what_has_no_answer_gives_none() -> None:
    nan = torch.full((5, 40, 2), torch.nan)
    assert answers(windows("w5"), nan) == [[]]
    empty = Windows([Question("", "Who?", "")], TOKENIZER, SquadRecipe())
    assert answers(empty, certain(empty)) == [[]]


def test_every_gold_answer_comes_back_through_windows(shared: Path) -> None:
    """One annotation ends in the middle of a number, "2,70" of "2,700", and so of a token."""
    vocabulary = read_vocabulary(shared / "data" / "bert" / "bert-base-uncased-vocab.txt")
    articles = read_articles(shared / "data" / "squad-xquad-en" / "xquad.en.json")
    recipe = SquadRecipe(max_length=128, stride=48, max_question_length=32, n_best=4)
    questions = list(questions_of(articles))
    made = Windows(questions, wordpiece(vocabulary), recipe)
    assert len(questions) == 1190
    assert len(made) > 2 * len(questions)
    best = [found[0] for found in answers(made, certain(made))]
    golds = [[answer.text for answer in question.answers] for question in questions]
    wrong = [
        question.id
        for question, answer, gold in zip(questions, best, golds, strict=True)
        if exact_match(answer, gold) < 100 or f1(answer, gold) < 100
    ]
    assert wrong == ["5729e2316aef0514001550c5"]
