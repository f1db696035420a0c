"""Exact match and F1, against values worked out by hand from the official rule."""

import pytest

from benchmarks.squad import answers_to, score
from knee_tune.tasks.bert.squad_demo import demo_articles
from knee_tune.tasks.bert.squad_metric import exact_match, f1, normalized
from knee_tune.tasks.bert.squad_text import questions_of

THIRD = 100 / 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Cat,\tand an Owl!", "cat and owl"),
        ("a-n apple", "apple"),  # punctuation goes first, then "an" is an article
        ("the-cat", "thecat"),
        ("Theatre a", "theatre"),
        ("U.S.A.", "usa"),
        ("$1,000.50", "100050"),
        ("“A” – é", "“ ” – é"),  # only ASCII punctuation goes
        ("The", ""),
        ("", ""),
    ],
)
def test_texts_are_compared_after_normalisation(text: str, words: str) -> None:
    assert normalized(text) == words


@pytest.mark.parametrize(
    ("answer", "golds", "em", "share"),
    [
        ("Denver Broncos", ["Denver Broncos"], 100, 100),
        ("the denver   broncos!", ["Denver Broncos"], 100, 100),
        ("Broncos", ["Denver Broncos"], 0, 200 / 3),  # precision 1, recall 1/2
        ("Denver Broncos of Colorado", ["Denver Broncos"], 0, 200 / 3),  # 1/2, 1
        ("in 1817", ["1817 in Larne", "1817"], 0, 80),  # 1, 2/3; and 1/2, 1
        ("to be or not to be", ["to be to"], 0, 200 / 3),  # "to" twice, "be" once: 3/6, 3/3
        ("be be be", ["be"], 0, 50),  # counted once: 1/3, 1
        ("Carolina", ["Denver Broncos", "Broncos"], 0, 0),
        ("", ["Denver"], 0, 0),
        ("The", ["a"], 100, 0),  # nothing is left of either: equal, but no word is shared
        ("1,000", ["1000", "one thousand"], 100, 100),
        ("seventeen", ["17", "seventeen bees"], 0, 200 / 3),
        ("x y z", ["x a b", "q"], 0, 40),  # the article is gone: 1/3, 1/2
        ("one two three", ["three four five"], 0, THIRD),
    ],
)
def test_the_best_of_all_golds_counts(
    answer: str, golds: list[str], em: float, share: float
) -> None:
    assert exact_match(answer, golds) == em
    assert f1(answer, golds) == pytest.approx(share, abs=1e-9)


def test_six_hundred_answers_score_as_torchmetrics_scores_them() -> None:
    """Its version of the rule, in single precision, recorded with torchmetrics 1.9."""
    questions = list(questions_of(demo_articles()))
    found = score(questions, answers_to(questions))
    assert found == pytest.approx((36.666668, 52.501556), abs=1e-4)
