"""The demo corpus: German-English sentences from a small grammar, generated and prepared at once.

Gender, case and number agreement, verbs in second place or at the end of subordinate clauses,
separable verbs, perfect and modal brackets, fronted adverbs and objects: easy to learn well, but
not with every learning rate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from knee_tune.tasks.prepared_folder import new_folder, set_folder
from knee_tune.tasks.translation.assemble import Text, finished, write_text
from knee_tune.tasks.translation.bpe import Bpe
from knee_tune.tasks.translation.lexicon import (
    ADJECTIVES,
    ADVERBS,
    ARTICLES,
    CONJUNCTIONS,
    ENDINGS,
    MODALS,
    NOUNS,
    PREPOSITIONS,
    SAYING,
    VERBS,
    Noun,
    Verb,
)
from knee_tune.tasks.translation.manifest import DEMO, Manifest

PAIRS = {"train": 2000, "valid": 300, "test": 300}
MERGES = 600
SEED = 1
VERSION = 1
"""Raised whenever the same seed would give other sentences."""

Case = Literal["nom", "acc", "dat"]
Order = Literal["second", "inverted", "final"]


class Phrase(NamedTuple):
    """The same in both languages."""

    german: str
    english: str


@dataclass(frozen=True)
class NounPhrase:
    """Determiner, at most one adjective, noun; in any case."""

    noun: Noun
    determiner: str
    adjective: tuple[str, str] | None
    plural: bool

    def german(self, case: Case) -> str:
        """Inflected for ``case``."""
        gender = "p" if self.plural else self.noun.gender
        words = [ARTICLES[self.determiner][case, gender]]
        if self.adjective:
            words.append(self.adjective[0] + ENDINGS[self.determiner][case, gender])
        word = self.noun.plural if self.plural else self.noun.german
        if self.plural and case == "dat" and word[-1] not in "ns":
            word += "n"
        return " ".join(filter(None, [*words, word]))

    @property
    def english(self) -> str:
        """With "a" or "an" as the next word asks for it."""
        words = [self.adjective[1]] if self.adjective else []
        words.append(self.noun.english_plural if self.plural else self.noun.english)
        match self.determiner:
            case "the" | "my":
                words.insert(0, self.determiner)
            case "a" if not self.plural:
                words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        return " ".join(words)

    @property
    def marked(self) -> bool:
        """Whether nominative and accusative differ, so that the order of phrases is free."""
        return self.german("nom") != self.german("acc")


class Grammar:
    """Draws sentence pairs; a seed always gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def sentence(self) -> Phrase:
        """A sentence pair, tokenized and in lower case."""
        kind = self._random.random()
        if kind < 0.55:
            main = self._main_clause()
        elif kind < 0.75:
            german, english = self._pick(CONJUNCTIONS)
            first, second = self._clause("second"), self._clause("final")
            main = Phrase(
                f"{first.german} , {german} {second.german}",
                f"{first.english} {english} {second.english}",
            )
        elif kind < 0.88:
            german, english = self._pick(CONJUNCTIONS)
            first, second = self._clause("final"), self._clause("inverted")
            main = Phrase(
                f"{german} {first.german} , {second.german}",
                f"{english} {first.english} , {second.english}",
            )
        else:
            subject, verb = self._noun_phrase(person=True), self._pick(SAYING)
            said = self._clause("final")
            main = Phrase(
                f"{subject.german('nom')} {verb.german(subject.plural)} , dass {said.german}",
                f"{subject.english} {verb.english(subject.plural)} that {said.english}",
            )
        return Phrase(f"{main.german} .", f"{main.english} .")

    def _main_clause(self) -> Phrase:
        if self._random.random() < 0.35:
            german, english = self._pick(ADVERBS)
            clause = self._clause("inverted")
            return Phrase(f"{german} {clause.german}", f"{english} {clause.english}")
        return self._clause("second", may_front=True)

    def _clause(self, order: Order, *, may_front: bool = False) -> Phrase:
        subject = self._noun_phrase(person=True)
        verb = self._pick(VERBS)
        german = []
        english = []
        if verb.takes_dative:
            receiver = self._noun_phrase(person=True)
            german.append(receiver.german("dat"))
            english.append(receiver.english)
        fronted = ""
        if verb.takes_accusative:
            thing = self._noun_phrase(person=False)
            if may_front and (thing.marked or subject.marked) and self._random.random() < 0.3:
                fronted = thing.german("acc")
            else:
                german.append(thing.german("acc"))
            english.append(thing.english)
        if self._random.random() < 0.25:
            preposition = self._pick(PREPOSITIONS)
            place = self._noun_phrase(person=False)
            german.append(f"{preposition[0]} {place.german('dat')}")
            english.append(f"{preposition[1]} {place.english}")
        finite, rest, english_verb = self._predicate(verb, subject.plural)
        nominative, middle = subject.german("nom"), " ".join(german)
        if order == "final":
            # The separable prefix joins the finite verb at the end; auxiliaries follow the verb.
            end = rest + finite if verb.prefix and rest == verb.prefix else f"{rest} {finite}"
            parts = [nominative, middle, end]
        elif order == "inverted":
            parts = [finite, nominative, middle, rest]
        elif fronted:
            parts = [fronted, finite, nominative, middle, rest]
        else:
            parts = [nominative, finite, middle, rest]
        return Phrase(
            " ".join(" ".join(parts).split()),
            " ".join([subject.english, english_verb, *english]),
        )

    def _predicate(self, verb: Verb, plural: bool) -> tuple[str, str, str]:
        """German finite form, the rest of the German verb, the English verb."""
        tense = self._random.random()
        if tense < 0.5:
            return verb.german(plural), verb.prefix, verb.english(plural)
        if tense < 0.75:
            german, english = ("haben", "have") if plural else ("hat", "has")
            return german, verb.german_participle, f"{english} {verb.english_participle}"
        singular, plural_form, english = self._pick(MODALS)
        return (plural_form if plural else singular), verb.infinitive, f"{english} {verb.base}"

    def _noun_phrase(self, *, person: bool) -> NounPhrase:
        adjective = self._pick(ADJECTIVES) if self._random.random() < 0.4 else None
        return NounPhrase(
            noun=self._pick([noun for noun in NOUNS if noun.person == person]),
            determiner=self._random.choices(["the", "a", "my"], [5, 3, 2])[0],
            adjective=adjective,
            plural=self._random.random() < 0.3,
        )

    def _pick(self, items: Sequence[Any]) -> Any:
        """Earlier items more often, as words are in real text."""
        weights = [1 / (rank + 4) for rank in range(len(items))]
        return self._random.choices(items, weights)[0]


def generate(seed: int = SEED) -> dict[str, Text]:
    """Text of every split; no source sentence occurs twice."""
    grammar = Grammar(seed)
    english: dict[str, str] = {}
    while len(english) < sum(PAIRS.values()):
        pair = grammar.sentence()
        english.setdefault(pair.german, pair.english)
    lines = list(english.items())
    text: dict[str, Text] = {}
    for split, size in PAIRS.items():
        part, lines = lines[:size], lines[size:]
        text[split] = ([german for german, _ in part], [line for _, line in part])
    return text


def prepare_demo(data_root: Path) -> Manifest:
    """The prepared set ``demo.de-en`` below ``data_root``; does nothing if it is there."""
    folder = set_folder(data_root, DEMO)
    request = {"generator": VERSION, "seed": SEED, "pairs": PAIRS, "merges": MERGES}
    if manifest := finished(folder, request):
        return manifest
    text = generate()
    words = Counter(word for side in text["train"] for line in side for word in line.split())
    bpe = Bpe.learn(words, merges=MERGES)
    pieces = {split: (bpe.encode(de), bpe.encode(en)) for split, (de, en) in text.items()}
    with new_folder(folder) as partial:
        return write_text(
            partial,
            pieces,
            name=DEMO,
            kind="grammar",
            source="de",
            target="en",
            bpe=bpe,
            request=request,
        )
