"""Questions in SQuAD v1.1's own form: read and looked through, written, split by article."""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from knee_tune.errors import UserError

SPLIT_SEED = 2016
"""Of the order in which articles are given to splits; the study's seed never moves a question."""


class _Part(BaseModel):
    """A part of the file; what else it says is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Answer(_Part):
    """One of the answers that people gave: a span of the paragraph."""

    answer_start: int = Field(ge=0)
    text: str

    @property
    def end(self) -> int:
        """The character after the last."""
        return self.answer_start + len(self.text)


class Asked(_Part):
    """A question on a paragraph."""

    id: str
    question: str
    answers: tuple[Answer, ...]


class Paragraph(_Part):
    """A text and the questions on it."""

    context: str
    qas: tuple[Asked, ...]


class Article(_Part):
    """Paragraphs of one subject."""

    title: str = ""
    paragraphs: tuple[Paragraph, ...]

    @property
    def questions(self) -> int:
        """How many there are on it."""
        return sum(len(paragraph.qas) for paragraph in self.paragraphs)


class _File(_Part):
    data: tuple[Article, ...]


@dataclass(frozen=True)
class Question:
    """A question, its paragraph, and all answers that count; for one that is only asked: none."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] = ()


def read_articles(path: Path) -> tuple[Article, ...]:
    """The articles of a file in SQuAD v1.1's form.

    UserError, which names the file and the question, if it is no such file, an answer is not in
    its paragraph where it says, a question has no answer (as some in v2.0), or two have one id.
    """
    try:
        found = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UserError(
            f"{path}: not in the form of SQuAD v1.1: {where}: {first['msg'].splitlines()[0]}"
        ) from None
    seen = set[str]()
    for paragraph in (each for article in found.data for each in article.paragraphs):
        for asked in paragraph.qas:
            if wrong := _wrong(asked, paragraph.context, seen):
                raise UserError(f"{path}: question {asked.id}: {wrong}")
            seen.add(asked.id)
    if not seen:
        raise UserError(f"{path}: no question in it")
    return found.data


def _wrong(asked: Asked, context: str, seen: set[str]) -> str:
    """What is wrong with a question; empty if nothing is."""
    if asked.id in seen:
        return "its id is that of an earlier one"
    if not asked.question.strip():
        return "it is empty"
    if not asked.answers:
        return "it has no answer; SQuAD v2.0 has such questions, and only v1.1 is read"
    for answer in asked.answers:
        if not answer.text.strip():
            return "one of its answers is empty"
        if context[answer.answer_start : answer.end] != answer.text:
            return (
                f"answer {answer.text[:60]!r} is not what stands at its answer_start "
                f"{answer.answer_start}, {context[answer.answer_start : answer.end][:60]!r}"
            )
    return ""


def in_v1_form(articles: Iterable[Article]) -> bytes:
    """The file that :func:`read_articles` reads, and the official script."""
    data = [article.model_dump(mode="json") for article in articles]
    return json.dumps({"version": "1.1", "data": data}, ensure_ascii=False).encode() + b"\n"


def questions_of(articles: Iterable[Article]) -> Iterator[Question]:
    """Every question, in the order of the file."""
    for article in articles:
        for paragraph in article.paragraphs:
            for asked in paragraph.qas:
                yield Question(asked.id, asked.question, paragraph.context, asked.answers)


def asked_of(given: Any) -> Question:
    """What is asked by a mapping with "question" and "context"; UserError if it has not both."""
    if isinstance(given, Mapping):
        question, context = given.get("question"), given.get("context")
        if isinstance(question, str) and isinstance(context, str):
            return Question("", question, context)
    raise UserError('an input must have a "question" and a "context", both of them text')


def split_by_article(
    articles: Sequence[Article], shares: Mapping[str, float]
) -> dict[str, list[Article]]:
    """Articles by split, in the file's order: no paragraph, nor its subject, is in two splits.

    ``shares`` are of the questions, of every split but "train", which gets the rest. Articles are
    drawn in an order that depends on their number alone, until a split has its share. UserError if
    there are too few of them for every split to have one.
    """
    articles = [article for article in articles if article.questions]
    if len(articles) <= len(shares):
        raise UserError(
            f"{len(articles)} articles cannot be split into train, {', '.join(shares)} by article"
        )
    waiting = list(range(len(articles)))
    random.Random(SPLIT_SEED).shuffle(waiting)
    whole = sum(article.questions for article in articles)
    drawn: dict[str, list[int]] = {name: [] for name in shares}
    for name, share in shares.items():
        left = share * whole
        while not drawn[name] or (left > 0 and len(waiting) > len(shares)):
            number = waiting.pop()
            drawn[name].append(number)
            left -= articles[number].questions
    drawn = {"train": waiting, **drawn}
    return {name: [articles[number] for number in sorted(taken)] for name, taken in drawn.items()}
