"""The one place where fields become flags: what the library says of a field, as it is typed."""

import re
from collections.abc import Mapping

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


def as_typed(text: str, flags: Mapping[str, str]) -> str:
    """``text`` with the flag of every field that it names; what else is in backticks stays."""
    return FIELD.sub(lambda named: flags.get(named[1], named[0]), text) if "`" in text else text
