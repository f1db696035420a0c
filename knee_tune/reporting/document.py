"""What a report is made of, whatever it is written as: sections of words, figures and tables."""

import re

from pydantic import Field

from knee_tune.specs.base import Spec

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


class Tile(Spec):
    """One number of the answer, to be read from a distance."""

    label: str
    value: str
    note: str = ""
