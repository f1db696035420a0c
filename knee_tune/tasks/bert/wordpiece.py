"""WordPiece tokenizers as BERT has them: read from a folder, or learned from texts."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from knee_tune.errors import UserError, first_line

VOCABULARY, TOKENIZER, SETTINGS = "vocab.txt", "tokenizer.json", "tokenizer_config.json"
"""One token a line; all of a tokenizer; whether ``vocab.txt`` is of lower case."""

PADDING, UNKNOWN, FIRST, BETWEEN, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PADDING, UNKNOWN, FIRST, BETWEEN, MASK)

MOST_LETTERS = 1000
"""Characters that a learned vocabulary can spell: the commonest, as BERT's own has it."""


@dataclass(frozen=True)
class Specials:
    """The numbers of the special tokens."""

    padding: int
    unknown: int
    first: int
    between: int
    mask: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Look them up; ValueError if the vocabulary lacks one."""
        found = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        if missing := [token for token, number in found.items() if number is None]:
            raise ValueError(f"it has no token {missing[0]}")
        return cls(*(number for number in found.values() if number is not None))


def wordpiece(vocabulary: Sequence[str], *, lowercase: bool = True) -> Tokenizer:
    """A tokenizer of these tokens, numbered in their order; ValueError if a special one is missing.

    Accents are stripped if it is of lower case, as BERT does it. ``encode(text,
    add_special_tokens=False)`` gives ``ids``, and ``offsets`` into the text in characters.
    """
    numbers = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = _plain(WordPiece(numbers, unk_token=UNKNOWN), lowercase=lowercase)
    Specials.of(tokenizer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def read_tokenizer(folder: Path, *, named: str) -> Tokenizer:
    """The WordPiece tokenizer in ``folder``: its ``tokenizer.json``, else ``vocab.txt``.

    It neither pads nor cuts what it encodes. ``named``: what an error calls the folder. UserError
    if there is none, or it is damaged, of another kind, or without BERT's special tokens.
    """
    if not folder.is_dir():
        raise UserError(f"{named}: no such folder; it needs {TOKENIZER} or {VOCABULARY}")
    try:
        if (folder / TOKENIZER).is_file():
            tokenizer = _read_whole(folder / TOKENIZER)
        elif (folder / VOCABULARY).is_file():
            tokenizer = wordpiece(
                read_vocabulary(folder / VOCABULARY), lowercase=_is_lowercase(folder / SETTINGS)
            )
        else:
            raise UserError(f"{named}: neither {VOCABULARY} nor {TOKENIZER} in it")
    except ValueError as error:
        raise UserError(f"{named}: no tokenizer of BERT's kind: {first_line(error)}") from None
    return tokenizer


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a ``vocab.txt``, one a line; ValueError if it is no text, or names one twice.

    A line may hold any character but the line feed: what Python takes for further ends of lines
    are tokens of BERT's vocabulary.
    """
    tokens = path.read_bytes().decode().removesuffix("\n").split("\n")
    tokens = [token.removesuffix("\r") for token in tokens]
    if len({*tokens}) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise ValueError(f"{path.name} has {twice!r} twice")
    return tokens


def write_vocabulary(vocabulary: Sequence[str], path: Path) -> None:
    """Write a ``vocab.txt``."""
    path.write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8", newline="\n")


def learn_vocabulary(texts: Iterable[str], *, size: int, lowercase: bool = True) -> list[str]:
    """``size`` tokens for these texts, or as many as they spell: special ones and letters first.

    ``texts`` are gone through twice. The same ones give the same vocabulary: tokenizers breaks ties
    by the numbers of tokens, and would number the characters as they come out of a hash table, so
    they are named to it in an order of ours.
    """
    tokenizer = _plain(WordPiece(unk_token=UNKNOWN), lowercase=lowercase)
    counts = Counter[str]()
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    letters = sorted(counts, key=lambda letter: (-counts[letter], letter))
    letters = [letter for letter in letters if not letter.isspace()][:MOST_LETTERS]
    first = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    trainer = WordPieceTrainer(
        vocab_size=size,
        special_tokens=first,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda each: each[1])]


def _plain(model: WordPiece, *, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def _read_whole(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{path.name}: {first_line(error)}") from None
    if not isinstance(tokenizer.model, WordPiece):
        raise ValueError(f"{path.name} is of {type(tokenizer.model).__name__}, not of WordPiece")
    Specials.of(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _is_lowercase(settings: Path) -> bool:
    """What ``tokenizer_config.json`` says, and true without one."""
    if not settings.is_file():
        return True
    content = json.loads(settings.read_text(encoding="utf-8"))
    return bool(content.get("do_lower_case", True)) if isinstance(content, dict) else True
