"""Windows over the tokens of a question and its paragraph, and what is read off them again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from knee_tune.tasks.bert.squad_recipe import SquadRecipe
from knee_tune.tasks.bert.squad_text import Answer, Question
from knee_tune.tasks.bert.wordpiece import Specials

_BEFORE_CONTEXT = 2
"""Special tokens before a paragraph's first: [CLS] question [SEP] paragraph [SEP]."""


@dataclass(frozen=True)
class Tokens:
    """A question and its paragraph as tokens."""

    question: NDArray[np.int32]
    context: NDArray[np.int32]
    offsets: NDArray[np.int32]
    """(context tokens, 2): the characters of each, first and after the last."""

    def span(self, answer: Answer) -> tuple[int, int]:
        """The first and the last token that have characters of ``answer``.

        ``(-1, -1)`` if no token has, as of a text that is cleaned away.
        """
        starts, ends = self.offsets.T
        inside = np.flatnonzero((ends > answer.answer_start) & (starts < answer.end))
        return (int(inside[0]), int(inside[-1])) if len(inside) else (-1, -1)


@dataclass(frozen=True)
class Window:
    """Tokens ``begin`` to ``end`` of a paragraph behind its question."""

    number: int
    """Of the question."""
    begin: int
    end: int
    labels: tuple[int, int]
    """Places in the window of the answer's first and last token; (0, 0), where the first special
    token is, if the answer does not lie in it as a whole."""
    length: int
    """Tokens of the whole window."""


@dataclass(frozen=True)
class Batch:
    """Windows as the model reads them, filled up to the longest: all (n, time) but the labels."""

    tokens: Tensor
    segments: Tensor
    """0 for the question, 1 for the paragraph."""
    mask: Tensor
    """Where there are tokens."""
    starts: Tensor
    """(n,): the label of the answer's first token."""
    ends: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device) -> "Batch":
        """The same on ``device``."""
        return Batch(*(each.to(device) for each in vars(self).values()))


@dataclass(frozen=True)
class Span:
    """An answer that the model gives: characters ``begin`` to ``end`` of the paragraph."""

    score: float
    """The logits of its start and its end, added up."""
    begin: int
    end: int


class Windows:
    """The windows of some questions, in their order.

    An answer is looked for by its first span in the list of those that count.
    """

    def __init__(
        self, questions: Sequence[Question], tokenizer: Tokenizer, recipe: SquadRecipe
    ) -> None:
        self.questions = questions
        self._recipe = recipe
        self._specials = Specials.of(tokenizer)
        self._tokens = _tokenized(questions, tokenizer, longest=recipe.max_question_length)
        self.windows = [
            window
            for number, (question, tokens) in enumerate(zip(questions, self._tokens, strict=True))
            for window in self._cut(number, question, tokens)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, numbers: Iterable[int]) -> Batch:
        """The windows of these numbers, filled up to the longest."""
        windows = [self.windows[number] for number in numbers]
        time = max((window.length for window in windows), default=1)
        tokens = np.full((len(windows), time), self._specials.padding)
        segments = np.zeros_like(tokens)
        for row, window in enumerate(windows):
            pair = self._tokens[window.number]
            question, context = pair.question, pair.context[window.begin : window.end]
            between = [self._specials.between]
            tokens[row, : window.length] = np.concatenate(
                [[self._specials.first], question, between, context, between]
            )
            segments[row, len(question) + _BEFORE_CONTEXT : window.length] = 1
        lengths = torch.tensor([window.length for window in windows])
        labels = torch.tensor([window.labels for window in windows]).reshape(-1, 2)
        return Batch(
            tokens=torch.from_numpy(tokens),
            segments=torch.from_numpy(segments),
            mask=torch.arange(time) < lengths[:, None],
            starts=labels[:, 0],
            ends=labels[:, 1],
        )

    def spans(self, numbers: Sequence[int], logits: Tensor) -> list[list[Span]]:
        """The best answers in each window of these numbers, best first, at most ``n_best`` of them.

        ``logits`` (n, time, 2), in the order of :meth:`batch`: of an answer's start and its end. An
        answer begins at one of the ``n_best`` likeliest starts and ends at one of the ends, within
        the paragraph and :attr:`~SquadRecipe.max_answer_length` tokens.
        """
        windows = [self.windows[number] for number in numbers]
        firsts = [len(self._tokens[each.number].question) + _BEFORE_CONTEXT for each in windows]
        lasts = [window.length - 1 for window in windows]
        places = torch.arange(logits.shape[1])
        inside = (places >= torch.tensor(firsts)[:, None]) & (places < torch.tensor(lasts)[:, None])
        scores = logits.float().cpu().masked_fill(~inside[..., None], -torch.inf)
        count = min(self._recipe.n_best, logits.shape[1])
        (starts, at), (ends, until) = (each.topk(count, dim=1) for each in scores.unbind(2))
        summed = starts[:, :, None] + ends[:, None, :]
        lengths = until[:, None, :] - at[:, :, None] + 1
        fits = (lengths > 0) & (lengths <= self._recipe.max_answer_length)
        values, pairs = summed.masked_fill(~fits, -torch.inf).flatten(1).topk(count, dim=1)
        at, until = at.gather(1, pairs // count), until.gather(1, pairs % count)
        found = []
        for row, (window, first) in enumerate(zip(windows, firsts, strict=True)):
            offsets = self._tokens[window.number].offsets[window.begin :]
            found.append(
                [
                    Span(score, int(offsets[start - first, 0]), int(offsets[end - first, 1]))
                    for score, start, end in zip(
                        values[row].tolist(), at[row].tolist(), until[row].tolist(), strict=True
                    )
                    if score > -torch.inf
                ]
            )
        return found

    def answers(self, number: int, spans: Iterable[Span]) -> list[str]:
        """The texts of a question's best answers, best first, of the spans of all its windows."""
        context = self.questions[number].context
        best = sorted(spans, key=lambda span: (-span.score, span.begin, span.end))
        texts = dict.fromkeys(context[span.begin : span.end] for span in best)
        return list(texts)[: self._recipe.n_best]

    def _cut(self, number: int, question: Question, tokens: Tokens) -> Iterable[Window]:
        before = len(tokens.question) + _BEFORE_CONTEXT
        room = self._recipe.max_length - before - 1
        first, last = tokens.span(question.answers[0]) if question.answers else (-1, -1)
        begin = 0
        while True:
            end = min(begin + room, len(tokens.context))
            holds = begin <= first and last < end
            yield Window(
                number=number,
                begin=begin,
                end=end,
                labels=(first - begin + before, last - begin + before) if holds else (0, 0),
                length=before + end - begin + 1,
            )
            if end == len(tokens.context):
                return
            begin += self._recipe.stride


def _tokenized(
    questions: Sequence[Question], tokenizer: Tokenizer, *, longest: int
) -> list[Tokens]:
    """Every question with its paragraph; a paragraph is tokenized once for all of its questions."""
    contexts = list(dict.fromkeys(question.context for question in questions))
    asked = tokenizer.encode_batch([each.question for each in questions], add_special_tokens=False)
    encoded = dict(
        zip(contexts, tokenizer.encode_batch(contexts, add_special_tokens=False), strict=True)
    )
    paragraphs = {
        context: (
            np.array(each.ids, dtype=np.int32),
            np.array(each.offsets, dtype=np.int32).reshape(-1, 2),
        )
        for context, each in encoded.items()
    }
    return [
        Tokens(np.array(each.ids[:longest], dtype=np.int32), *paragraphs[question.context])
        for question, each in zip(questions, asked, strict=True)
    ]
