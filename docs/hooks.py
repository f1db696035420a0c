"""What MkDocs runs while it builds: the reference is made from the code that it speaks of.

``<!-- generated: NAME -->`` in a page becomes what ``GENERATED`` has under that name.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from typer.cli import get_docs_for_click

from knee_tune.cli.commands import app
from knee_tune.config.resolve import SpaceFile
from knee_tune.config.study import StudySpec
from knee_tune.tasks.registry import TASKS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
"""The programs that are shown as a whole."""

MARK = re.compile(r"<!-- generated: (.+?) -->")

BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": "≥ {}",
    "exclusiveMaximum": "< {}",
    "maximum": "≤ {}",
    "multipleOf": "a multiple of {}",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated where the page asks for it; MkDocs calls this for every page."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)


def command_line() -> str:
    """Every command with its arguments and options, as Typer itself writes them in Markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="knee-tune")
    written = get_docs_for_click(obj=command, ctx=context, name="knee-tune", indent=1)
    # Its lists of commands cut every text in the middle, and the page lists its headings anyway.
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", written)


def search_space() -> str:
    """The fields of ``search_spaces/<task>.yaml``."""
    return table(schemas()["SpaceFile"])


def study() -> str:
    """The fields of ``studies/<name>.yaml``."""
    return table(schemas()["StudySpec"])


def recipes() -> str:
    """What ``recipe`` has, task by task."""
    parts = []
    for name, entry in TASKS.items():
        recipe = entry.recipe_type()
        metrics = ", ".join(f"`{metric.name}` ({metric.direction})" for metric in recipe.metrics)
        parts += [
            f"### {name} {{#recipe-{name}}}",
            prose(schemas()[recipe.__name__]),
            f"Metrics: {metrics}. Trials are pruned on `{recipe.watched}`.",
            table(schemas()[recipe.__name__]),
        ]
    return "\n\n".join(parts)


def inner_values() -> str:
    """The values that the tables above link to."""
    shown = {"SpaceFile", "StudySpec", *(each.recipe_type().__name__ for each in TASKS.values())}
    return "\n\n".join(
        f"### {name} {{#{name.lower()}}}\n\n{prose(schema)}\n\n{table(schema)}"
        for name, schema in sorted(schemas().items())
        if name not in shown
    )


def code(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"


GENERATED: Mapping[str, Callable[[], str]] = {
    "command line": command_line,
    "search space": search_space,
    "study": study,
    "recipes": recipes,
    "inner values": inner_values,
    "example of an own task": lambda: code(
        "python", (EXAMPLES / "own_task" / "my_task.py").read_text(encoding="utf-8")
    ),
    "example of an own study": lambda: code(
        "python", (EXAMPLES / "own_optuna" / "objective.py").read_text(encoding="utf-8")
    ),
}


@cache
def schemas() -> Mapping[str, Mapping[str, Any]]:
    """The JSON schema of every value that a YAML file may hold, by its class's name."""
    models: list[type[BaseModel]] = [
        SpaceFile,
        StudySpec,
        *(entry.recipe_type() for entry in TASKS.values()),
    ]
    _, together = models_json_schema([(model, "validation") for model in models])
    return dict(together["$defs"])


def table(schema: Mapping[str, Any]) -> str:
    """One row per field: its name, its type, its default, what it means."""
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema.get("properties", {}).items():
        if name in schema.get("required", ()):
            default = "required"
        else:
            default = f"`{field['default']}`" if field.get("default") not in (None, "") else ""
        meaning = field.get("description", "").replace("``", "`").replace("|", r"\|")
        rows.append(f"| `{name}` | {kind(field)} | {default} | {meaning} |")
    return "\n".join(rows)


def kind(field: Mapping[str, Any]) -> str:
    """The type of a field in words, with its bounds; a model is a link to its own table."""
    if reference := field.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(kind(choice) for choice in choices)
    if values := field.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        items = field.get("prefixItems") or [field.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(kind(item) for item in items))
    bounds = [words.format(number(field[name])) for name, words in BOUNDS.items() if name in field]
    return f"{field.get('type', 'any')} {', '.join(bounds)}".strip()


def number(bound: float) -> str:
    """A bound as people write it: 1,000,000, and 1e+12 for a fraction's."""
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def prose(schema: Mapping[str, Any]) -> str:
    """A class's docstring as Markdown: one backtick for two, no roles."""
    text = schema.get("description", "").replace("``", "`")
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
