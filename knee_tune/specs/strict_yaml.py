"""YAML without surprises.

Plain scalars mean what YAML 1.2 and people say they mean: ``1e-3`` is a number, ``no`` and ``on``
are text, ``010`` is ten. A key given twice, an anchor or a tag is refused.
"""

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from knee_tune.errors import UserError

FieldPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Composes nodes whose tags follow our own reading of plain scalars."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), None)


@dataclass(frozen=True)
class Document:
    """A YAML file: what it says, and the line on which it says it."""

    label: str
    """The file as people know it, for messages."""
    data: Mapping[str, Any]
    lines: Mapping[FieldPath, int]
    """Line (from 1) of every key and list item."""

    def line(self, path: FieldPath) -> int | None:
        """The line of the value at ``path``, or of the nearest mapping or list around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read_document(path: Path, label: str) -> Document:
    """The mapping in the file at ``path``; UserError, naming it ``label``, if it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{label}: cannot be read: {reason}") from None
    lines: dict[FieldPath, int] = {}
    try:
        data = _parse(text, lines)
    except yaml.YAMLError as error:
        raise UserError(f"{label}: {_one_line(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{label}: must be a mapping of keys to values, got {data!r:.60}")
    return Document(label=label, data=data, lines=lines)


def parse_value(text: str) -> Any:
    """The value that ``text`` means in a file; ValueError (one line) if it is no YAML."""
    try:
        return _parse(text, {})
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from None


def _parse(text: str, lines: dict[FieldPath, int]) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(node, (), lines, set())
    finally:
        loader.dispose()


def _value(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int], seen: set[int]) -> Any:
    if id(node) in seen:
        raise _error("anchors and aliases are not supported", node)
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, path, lines, seen)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        for position, item in enumerate(node.value):
            lines[(*path, position)] = item.start_mark.line + 1
        return [_value(item, (*path, i), lines, seen) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    raise _error(f"tag {node.tag} is not supported", node)


def _mapping(
    node: yaml.MappingNode, path: FieldPath, lines: dict[FieldPath, int], seen: set[int]
) -> dict[Hashable, Any]:
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error("a key must be text", key_node)
        key = key_node.value
        if key in mapping:
            first = lines[(*path, key)]
            raise _error(f"key '{key}' is given twice (first on line {first})", key_node)
        lines[(*path, key)] = key_node.start_mark.line + 1
        mapping[key] = _value(value_node, (*path, key), lines, seen)
    return mapping


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return str(text)
        case "null":
            return None
        case "bool":
            return bool(text.lower() == "true")
        case "int":
            return int(text)
        case "float":
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise _error(f"tag {node.tag} is not supported", node)


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "not valid YAML: " + " ".join(str(error).split())
    context = f"{error.context}: " if error.context else ""
    return f"line {error.problem_mark.line + 1}: {context}{error.problem}"
