"""What a report is made of, whatever it is written as: sections of words, figures and tables."""

import re
from typing import Any, ClassVar

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.recipe import Direction

_NUMBER = re.compile(r"[-+–]?[\d.,]*(\d|–)")


class Table(Spec):
    """Cells as they are shown. Every row is as long as ``columns``."""

    caption: str = Field(description="what the numbers are, and of which split")
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: int | None = Field(default=None, description="index of the row that stands out")
    folded: bool = Field(default=False, description="long: HTML opens it on a click")

    @property
    def numeric(self) -> tuple[bool, ...]:
        """By column, whether all its cells begin with a number: such columns are set right."""
        return tuple(
            all(_NUMBER.match(row[column]) for row in self.rows)
            for column in range(len(self.columns))
        )


class Command(Spec):
    """Something to type."""

    what: str
    text: str


class Section(Spec):
    """One heading and what stands below it, in this order: words, figures, tables, commands."""

    key: str = Field(description="its anchor")
    title: str
    words: tuple[str, ...] = ()
    figures: tuple[str, ...] = Field(default=(), description="names; left out where there is none")
    tables: tuple[Table, ...] = ()
    commands: tuple[Command, ...] = ()
    wide: bool = Field(default=False, description="figures need all the width: tables go below")


class Tile(Spec):
    """One number of the answer, to be read from a distance."""

    label: str
    value: str
    note: str = ""


class Report(Spec):
    """What every report says, whatever its study did. Dumped without ``tiles``, ``sections`` and
    ``figures``, which say the same to people."""

    explains_search: ClassVar[bool] = False
    """Whether a page says what is searched: seed LR and explore fraction of a Knee schedule."""

    study: str
    task: str
    preset: str
    description: str
    written: str = Field(description="ISO 8601, UTC")
    metric: str = Field(description="of all values, with its split, as in valid_accuracy")
    direction: Direction
    environment: dict[str, str]
    replay: tuple[Command, ...]
    left_out: tuple[str, ...] = Field(description="what the report has nothing to show of, and why")
    tiles: tuple[Tile, ...] = Field(exclude=True)
    sections: tuple[Section, ...] = Field(exclude=True, description="the answer first")
    figures: dict[str, dict[str, Any]] = Field(exclude=True, description="plotly figures, by name")
