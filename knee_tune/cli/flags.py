"""The one place where fields become flags: what the library says of a field, as it is typed."""

import logging
import re

import typer
from typer.core import TyperGroup

FIELD = re.compile(r"`([a-z_]+(?:=False)?)`")
"""How the library names a field that was wrong: ``amp`` in backticks, ``amp=False`` to leave it."""


def flags_of(group: TyperGroup) -> dict[str, str]:
    """The flag of every field that a command of ``group`` sets."""
    flags: dict[str, str] = {}
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            flags |= flags_of(command)
            continue
        for option in command.params:
            field = (option.name or "").rstrip("_")
            if option.opts[0].startswith("--"):  # else it is an argument
                flags[field] = option.opts[0]
            if option.secondary_opts:
                flags[f"{field}=False"] = option.secondary_opts[0]
    return flags


def as_typed(text: str) -> str:
    """What the library says, with the flag of every field; what else is in backticks stays."""
    if FIELD.search(text) is None:
        return text
    from knee_tune.cli.commands import app

    flags = flags_of(typer.main.get_group(app))
    return FIELD.sub(lambda named: flags.get(named[1], named[0]), text)


class TypedFormatter(logging.Formatter):
    """Log lines as people read them on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The message alone, with flags."""
        return as_typed(super().format(record))
