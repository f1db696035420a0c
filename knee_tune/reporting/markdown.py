"""A report as Markdown, as GitHub, MLflow and Optuna Dashboard render it."""

import re
from collections.abc import Iterator

from knee_tune.errors import printable
from knee_tune.reporting.document import Report, Section, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#])")


def as_markdown(report: Report) -> str:
    """Every section with its words and tables; figures are in the HTML alone."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {_text(report.study)}"
    if report.description:
        yield _text(report.description)
    head = " | ".join(_text(tile.label) for tile in report.tiles)
    values = " | ".join(f"**{_text(tile.value)}**" for tile in report.tiles)
    notes = " | ".join(_text(tile.note) for tile in report.tiles)
    yield f"| {head} |\n|{' --- |' * len(report.tiles)}\n| {values} |\n| {notes} |"
    for section in report.sections:
        yield from _section(section)
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
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command.text)), default=0))
        yield f"{fence}\n{command.text.rstrip()}\n{fence}"


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
