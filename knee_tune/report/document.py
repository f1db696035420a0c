"""What a report is made of, whatever it is written as: sections of words, figures and tables."""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from knee_tune.config.recipe import Direction, Spec
from knee_tune.errors import printable
from knee_tune.records.findings import Importances
from knee_tune.records.shown import NOTHING
from knee_tune.schedules.settings import Format, Setting

if TYPE_CHECKING:
    from jinja2 import Environment

_NUMBER = re.compile(r"[-+–]?[\d.,]*(\d|–)")


class Table(Spec):
    """Cells as they are shown. Every row is as long as ``columns``; a column in which no row has
    anything is left out."""

    caption: str = Field(description="what the numbers are, and of which split")
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: int | None = Field(default=None, description="index of the row that stands out")
    folded: bool = Field(default=False, description="long: HTML opens it on a click")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty_columns(cls, table: dict[str, Any]) -> dict[str, Any]:
        rows, columns = table["rows"], table["columns"]
        kept = [
            index
            for index in range(len(columns))
            if not rows or any(row[index] not in (NOTHING, "") for row in rows)
        ]
        return table | {
            "columns": tuple(columns[index] for index in kept),
            "rows": tuple(tuple(row[index] for index in kept) for row in rows),
        }

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
    unit: str = ""
    note: str = ""


class Report(Spec):
    """What every report says, whatever its study did. Dumped without ``tiles``, ``settings``,
    ``sections`` and ``figures``, which say the same to people."""

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
    settings: dict[Format, Setting] = Field(
        default={}, exclude=True, description="the answer as other projects write it"
    )
    sections: tuple[Section, ...] = Field(exclude=True, description="the answer first")
    figures: dict[str, dict[str, Any]] = Field(exclude=True, description="plotly figures, by name")

    @property
    def answer_text(self) -> str:
        """The answer as plain text, a line for each thing it says."""
        return "\n".join((f"{self.study} ({self.task})", *self.sections[0].words))


class ReportContext(Spec):
    """What a report shows that the record of its study does not hold."""

    written: float = Field(description="seconds since 1970, UTC")
    importances: Importances | None = None
    environment: dict[str, str] = Field(default_factory=dict, description="versions, devices, data")
    replay: tuple[Command, ...] = ()
    study_file: str = Field(default="", description="YAML with which the study can be run again")
    test: dict[int, dict[str, float]] = Field(
        default_factory=dict, description="metrics on the test split, by trial, where measured"
    )


def written_at(context: ReportContext) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(context.written, UTC).isoformat(timespec="seconds")


# A report as one HTML file that needs nothing else: no network, no server, no other file.

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def as_html(report: Report) -> str:
    """The page, with its figures and the library that draws them inside; some 1.6 MB."""
    figures = {name: _undressed(each) for name, each in report.figures.items()}
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            figures=script_json(figures),
            plotly_js=plotly_js() if figures else "",
        )
    )


def figure_page(figure: dict[str, Any]) -> str:
    """One figure, which has a title, as a page of its own; drawn like those of a report."""
    return (
        _environment()
        .get_template("figure.html")
        .render(
            title=figure["layout"]["title"]["text"],
            figure=figure,
            figures=script_json({"figure": _undressed(figure)}),
            plotly_js=plotly_js(),
        )
    )


@cache
def plotly_js() -> str:
    """The part of plotly.js that draws on two axes: a third of the whole.

    It is plotly.js-cartesian-dist-min as npm has it, with its licence beside it.
    """
    bundle = files("knee_tune.report") / "page" / "plotly" / "plotly-cartesian.min.js"
    return bundle.read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that may stand in a ``<script>``: nothing in it can end the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def _undressed(figure: dict[str, Any]) -> dict[str, Any]:
    """Without plotly's template: the page dresses its figures itself, for light and for dark."""
    layout = {name: value for name, value in figure["layout"].items() if name != "template"}
    return {"data": figure["data"], "layout": layout}


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow

    return Environment(
        loader=PackageLoader("knee_tune.report", "page"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# A report as Markdown, as GitHub, MLflow and Optuna Dashboard render it.

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def as_markdown(report: Report) -> str:
    """Every section with its words and tables; figures are in the HTML alone."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {_text(report.study)}"
    if report.description:
        yield _text(report.description)
    head = " | ".join(_text(tile.label) for tile in report.tiles)
    values = " | ".join(
        f"**{_text(f'{tile.value} {tile.unit}'.strip())}**" for tile in report.tiles
    )
    notes = " | ".join(_text(tile.note) for tile in report.tiles)
    yield f"| {head} |\n|{' --- |' * len(report.tiles)}\n| {values} |\n| {notes} |"
    for section in report.sections:
        yield from _section(section)
        if section.key == "answer" and report.settings:
            yield from _settings(report.settings.values())
    if report.left_out:
        yield "## Not in this report"
        yield "\n".join(f"- {_text(reason)}" for reason in report.left_out)
    yield f"Written by knee-tune, {_text(report.written)}."


def _section(section: Section) -> Iterator[str]:
    yield f"## {_text(section.title)}"
    yield from map(_text, section.words)
    for table in section.tables:
        yield f"**{_text(table.caption)}**"
        yield _table(table)
    for command in section.commands:
        yield f"{_text(command.what)}:"
        yield _fenced(command.text)


def _settings(settings: Iterable[Setting]) -> Iterator[str]:
    """The answer as every project writes it, or why one cannot."""
    yield "### As a setting"
    for setting in settings:
        yield f"**{_text(setting.title)}**"
        if setting.text:
            yield _fenced(setting.text)
        if setting.note:
            yield _text(setting.note)


def _fenced(text: str) -> str:
    """A block of code, whatever backticks it holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text.rstrip()}\n{fence}"


def _table(table: Table) -> str:
    lines = [
        "| " + " | ".join(map(_text, table.columns)) + " |",
        "|" + "".join(" ---: |" if right else " --- |" for right in table.numeric),
    ]
    for index, row in enumerate(table.rows):
        mark = "**" if index == table.marked else ""
        lines.append("| " + " | ".join(f"{mark}{_text(cell)}{mark}" for cell in row) + " |")
    return "\n".join(lines)


def _text(text: str) -> str:
    """On one line, with nothing in it that Markdown or HTML would take for their own."""
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))
