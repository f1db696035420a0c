"""Questions that need no files: lives of people who never were, written by chance from a few words.

The same every time. A life tells of a birth, a trade, two moves and a hobby; every fact is asked
for in words that are not those of its sentence.
"""

import random
from collections.abc import Mapping
from string import Formatter

from knee_tune.tasks.bert.squad_text import Answer, Article, Asked, Paragraph

SEED, LIVES = 1, 120

_FIRST = "Ada Bela Cora Dora Edda Finn Gero Hugo Ines Jonas Kira Luca Mila Nils Olga Piet"
_LAST = "Arden Brook Calder Dunn Ellery Frost Garner Hale Ingram Jarvis Keller Lund Marsh"
_TOWNS = (
    "Aldermoor Brackwater Coldharbour Dunmere Eastling Farrowby Greywick Holloway Inverbrae "
    "Kestrel Lowfield Merrow Northcote Oakhollow Pennock Redcliffe Saltmarsh Thornbury"
)
_TRADES = (
    "glass blower/clock maker/ship builder/school teacher/bridge engineer/book binder/"
    "watch repairer/piano tuner/map drawer/stone mason"
)
_HOBBIES = (
    "growing roses/painting boats/playing the flute/collecting stamps/keeping bees/"
    "baking bread/watching birds/reading old maps"
)
_ASIDES = (
    "Winters there were long./The town was small and quiet./"
    "Little else is known of those years./Letters of that time have survived."
)
_TOLD = (
    "{name} was born in {birthplace} in {birth}.",
    "In {moved} the family left for {first}, where {name} worked as a {trade}.",
    "The next move, to {second}, came in {later}.",
    "Evenings were spent {hobby}.",
)
_ASKED = {
    "birth": "What year was the birth of {name}?",
    "birthplace": "What town was the birthplace of {name}?",
    "trade": "What was the job?",
    "first": "Which place did {name} go to before any other?",
    "hobby": "How was free time passed?",
}
"""Questions, by what answers them."""


def demo_articles() -> list[Article]:
    """:data:`LIVES` articles of one paragraph and five questions each."""
    draw = random.Random(SEED)
    return [_life(draw, number) for number in range(LIVES)]


def _life(draw: random.Random, number: int) -> Article:
    birth = draw.randrange(1800, 1900)
    moved = birth + draw.randrange(18, 30)
    towns = draw.sample(_TOWNS.split(), 3)
    facts = {
        "name": f"{draw.choice(_FIRST.split())} {draw.choice(_LAST.split())}",
        **dict(zip(("birthplace", "first", "second"), towns, strict=True)),
        "birth": str(birth),
        "moved": str(moved),
        "later": str(moved + draw.randrange(3, 20)),
        "trade": draw.choice(_TRADES.split("/")),
        "hobby": draw.choice(_HOBBIES.split("/")),
    }
    told = list(_TOLD)
    told.insert(draw.randrange(1, len(told) + 1), draw.choice(_ASIDES.split("/")))
    context, starts = _filled(" ".join(told), facts)
    asked = tuple(
        Asked(
            id=f"{number}-{fact}",
            question=question.format_map(facts),
            answers=(Answer(answer_start=starts[fact], text=facts[fact]),),
        )
        for fact, question in _ASKED.items()
    )
    return Article(title=f"Life {number}", paragraphs=(Paragraph(context=context, qas=asked),))


def _filled(template: str, facts: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """The text, and where in it each fact stands."""
    text, starts = "", dict[str, int]()
    for before, fact, _, _ in Formatter().parse(template):
        text += before
        if fact is not None:
            starts[fact] = len(text)
            text += facts[fact]
    return text, starts
