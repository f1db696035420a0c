"""Words and inflection tables of the demo grammar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
