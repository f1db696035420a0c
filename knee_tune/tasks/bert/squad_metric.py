"""Exact match and F1 of answers, as the official script for SQuAD v1.1 counts them."""

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalized(text: str) -> str:
    """Lower case, without (ASCII) punctuation and articles, with one space between words.

    In this order: an article is looked for where punctuation was removed, so "a-n" becomes one.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """100 if ``answer`` is one of ``golds`` after normalisation, else 0."""
    return 100.0 * (normalized(answer) in map(normalized, golds))


def f1(answer: str, golds: Iterable[str]) -> float:
    """The best F1 over ``golds`` of the words that are in both, in percent; each as often as it is.

    0 where none is, which counts for two texts without words too.
    """
    words = Counter(normalized(answer).split())
    return max(_shared(words, Counter(normalized(gold).split())) for gold in golds)


def _shared(words: Counter[str], gold: Counter[str]) -> float:
    shared = (words & gold).total()
    if not shared:
        return 0.0
    precision, recall = shared / words.total(), shared / gold.total()
    return 100 * 2 * precision * recall / (precision + recall)
