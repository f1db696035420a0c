"""Generates the demo corpus, German-English sentences of a small grammar: ``python -m`` this.

Gender, case and number agreement, verbs in second place or at the end of subordinate clauses,
separable verbs, perfect and modal brackets, fronted adverbs and objects: easy to learn well, but
not with every learning rate. The package carries the result alone: fingerprints of data and
figures rest on it, so it must not change.
"""

import bz2
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple

from knee_tune.tasks.translation.demo import PAIRS, SEED, TEXT

Gender = Literal["m", "f", "n"]


@dataclass(frozen=True)
class Noun:
    """German singular and plural (nominative) and gender; English singular and plural."""

    german: str
    plural: str
    gender: Gender
    english: str
    english_plural: str
    person: bool


@dataclass(frozen=True)
class Verb:
    """German infinitive without ``prefix``, third person, participle; English the same."""

    stem: str
    third: str
    german_participle: str
    base: str
    english_third: str
    english_participle: str
    takes_accusative: bool = False
    takes_dative: bool = False
    prefix: str = ""

    @property
    def infinitive(self) -> str:
        """With the separable prefix."""
        return self.prefix + self.stem

    def german(self, plural: bool) -> str:
        """Finite present form, without the separable prefix."""
        return self.stem if plural else self.third

    def english(self, plural: bool) -> str:
        """Finite present form."""
        return self.base if plural else self.english_third


def _nouns(text: str, *, person: bool) -> tuple[Noun, ...]:
    """One noun a line: German, plural, gender, English and, if irregular, its plural."""
    nouns = []
    for line in text.strip().splitlines():
        german, plural, gender, english, *irregular = line.split()
        assert gender in ("m", "f", "n")
        english_plural = irregular[0] if irregular else english + "s"
        nouns.append(Noun(german, plural, gender, english, english_plural, person))  # type: ignore[arg-type]
    return tuple(nouns)


def _verbs(text: str, *, accusative: bool = False, dative: bool = False) -> tuple[Verb, ...]:
    """One verb a line: prefix|infinitive, third person, participle; English, third, participle."""
    verbs = []
    for line in text.strip().splitlines():
        infinitive, third, participle, base, english_third, english_participle = line.split()
        prefix, _, stem = infinitive.rpartition("|")
        verbs.append(
            Verb(
                stem,
                third,
                participle,
                base,
                english_third,
                english_participle,
                accusative,
                dative,
                prefix,
            )
        )
    return tuple(verbs)


PERSONS = _nouns(
    """
    frau frauen f woman women
    mann männer m man men
    kind kinder n child children
    lehrer lehrer m teacher
    freundin freundinnen f friend
    hund hunde m dog
    mädchen mädchen n girl
    ärztin ärztinnen f doctor
    bruder brüder m brother
    katze katzen f cat
    schwester schwestern f sister
    könig könige m king
    nachbarin nachbarinnen f neighbour
    pferd pferde n horse
    sohn söhne m son
    tochter töchter f daughter
    vogel vögel m bird
    königin königinnen f queen
    koch köche m cook
    schaf schafe n sheep sheep
    bäcker bäcker m baker
    malerin malerinnen f painter
    """,
    person=True,
)
THINGS = _nouns(
    """
    buch bücher n book
    brief briefe m letter
    blume blumen f flower
    haus häuser n house
    apfel äpfel m apple
    tür türen f door
    bild bilder n picture
    stuhl stühle m chair
    lampe lampen f lamp
    auto autos n car
    schlüssel schlüssel m key
    flasche flaschen f bottle
    messer messer n knife knives
    ball bälle m ball
    karte karten f map
    brot brote n loaf loaves
    garten gärten m garden
    kirche kirchen f church churches
    schiff schiffe n ship
    tisch tische m table
    uhr uhren f clock
    fenster fenster n window
    baum bäume m tree
    brücke brücken f bridge
    ei eier n egg
    mantel mäntel m coat
    """,
    person=False,
)
NOUNS = PERSONS + THINGS

ADJECTIVES = (
    ("alt", "old"),
    ("klein", "small"),
    ("neu", "new"),
    ("groß", "big"),
    ("schön", "beautiful"),
    ("rot", "red"),
    ("ruhig", "quiet"),
    ("schwer", "heavy"),
    ("weiß", "white"),
    ("jung", "young"),
    ("ehrlich", "honest"),
    ("grün", "green"),
    ("leer", "empty"),
    ("schnell", "fast"),
    ("hässlich", "ugly"),
    ("freundlich", "kind"),
    ("seltsam", "strange"),
    ("blau", "blue"),
)

VERBS = (
    *_verbs(
        """
        sehen sieht gesehen see sees seen
        finden findet gefunden find finds found
        kaufen kauft gekauft buy buys bought
        suchen sucht gesucht seek seeks sought
        nehmen nimmt genommen take takes taken
        malen malt gemalt paint paints painted
        verlieren verliert verloren lose loses lost
        tragen trägt getragen carry carries carried
        brauchen braucht gebraucht need needs needed
        verstecken versteckt versteckt hide hides hidden
        vergessen vergisst vergessen forget forgets forgotten
        waschen wäscht gewaschen wash washes washed
        """,
        accusative=True,
    ),
    *_verbs(
        """
        an|sehen sieht angesehen watch watches watched
        mit|bringen bringt mitgebracht bring brings brought
        auf|machen macht aufgemacht open opens opened
        weg|werfen wirft weggeworfen discard discards discarded
        aus|wählen wählt ausgewählt choose chooses chosen
        """,
        accusative=True,
    ),
    *_verbs(
        """
        geben gibt gegeben give gives given
        zeigen zeigt gezeigt show shows shown
        schicken schickt geschickt send sends sent
        verkaufen verkauft verkauft sell sells sold
        """,
        accusative=True,
        dative=True,
    ),
    *_verbs(
        """
        schlafen schläft geschlafen sleep sleeps slept
        singen singt gesungen sing sings sung
        warten wartet gewartet wait waits waited
        arbeiten arbeitet gearbeitet work works worked
        lachen lacht gelacht laugh laughs laughed
        tanzen tanzt getanzt dance dances danced
        """
    ),
    *_verbs(
        """
        helfen hilft geholfen help helps helped
        danken dankt gedankt thank thanks thanked
        antworten antwortet geantwortet answer answers answered
        """,
        dative=True,
    ),
)
SAYING = _verbs(
    """
    sagen sagt gesagt say says said
    wissen weiß gewusst know knows known
    glauben glaubt geglaubt believe believes believed
    hoffen hofft gehofft hope hopes hoped
    """
)

MODALS = (
    ("kann", "können", "can"),
    ("muss", "müssen", "must"),
    ("soll", "sollen", "should"),
    ("darf", "dürfen", "may"),
)
ADVERBS = (
    ("heute", "today"),
    ("jetzt", "now"),
    ("oft", "often"),
    ("morgens", "in the morning"),
    ("manchmal", "sometimes"),
    ("abends", "in the evening"),
    ("endlich", "finally"),
    ("vielleicht", "perhaps"),
)
CONJUNCTIONS = (
    ("weil", "because"),
    ("wenn", "when"),
    ("obwohl", "although"),
    ("während", "while"),
    ("bevor", "before"),
)
PREPOSITIONS = (("mit", "with"), ("neben", "next to"), ("hinter", "behind"), ("unter", "under"))

Table = Mapping[tuple[str, str], str]
"""Form by case and gender ("p": plural)."""


def _table(nominative: str, accusative: str, dative: str) -> Table:
    """Four forms a case, masculine, feminine, neuter, plural; "-" is nothing."""
    return {
        (case, gender): form.replace("-", "")
        for case, forms in zip(("nom", "acc", "dat"), (nominative, accusative, dative), strict=True)
        for gender, form in zip("mfnp", forms.split(), strict=True)
    }


ARTICLES: Mapping[str, Table] = {
    "the": _table("der die das die", "den die das die", "dem der dem den"),
    "a": _table("ein eine ein -", "einen eine ein -", "einem einer einem -"),
    "my": _table("mein meine mein meine", "meinen meine mein meine", "meinem meiner meinem meinen"),
}
ENDINGS: Mapping[str, Table] = {
    "the": _table("e e e en", "en e e en", "en en en en"),
    "a": _table("er e es e", "en e es e", "en en en en"),
    "my": _table("er e es en", "en e es en", "en en en en"),
}


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


def generate(seed: int = SEED) -> list[Phrase]:
    """As many sentence pairs as the corpus has; no German sentence occurs twice."""
    grammar = Grammar(seed)
    english: dict[str, str] = {}
    while len(english) < sum(PAIRS.values()):
        pair = grammar.sentence()
        english.setdefault(pair.german, pair.english)
    return [Phrase(*pair) for pair in english.items()]


def content(pairs: Sequence[Phrase]) -> str:
    """The text of the data file: a pair a line, German TAB English."""
    return "".join(f"{pair.german}\t{pair.english}\n" for pair in pairs)


if __name__ == "__main__":
    TEXT.write_bytes(bz2.compress(content(generate()).encode()))
