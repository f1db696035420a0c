"""YAML without surprises.

Plain scalars mean what YAML 1.2 and people say they mean: ``1e-3`` is a number, ``no`` and ``on``
are text, ``010`` is ten. A key given twice, an anchor or a tag is refused, and so is what no
setting needs: a huge file, deep nesting, a number beyond 64 bits, text with control characters.
"""

import re
import unicodedata
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from knee_tune.errors import UserError, disk_trouble

FieldPath = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""

DEEPEST = 20
"""Levels of mappings and lists; no setting has more than six."""

MOST_BYTES = 200_000
"""Of a file; the largest study that comes with knee-tune has a twentieth of it."""

_TAG = "tag:yaml.org,2002:"
_MOST_DIGITS = 18  # whole numbers of so many fit into 64 bits
_LAYOUT = "\n\r\t"


class _Loader(yaml.SafeLoader):
    """Composes nodes whose tags follow our own reading of plain scalars."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As PyYAML's, which is recursive and would go as deep as the text does."""
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"nested more than {DEEPEST} levels deep", problem_mark=mark
            )
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


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
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"{label}: larger than {MOST_BYTES:,} bytes; is it the right file?")
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if disk_trouble(error):
            raise
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
        try:
            return _scalar(node)
        except ValueError:  # its tag was given, and its text is something else
            raise _error(f"{node.value!r:.40} is no {node.tag.removeprefix(_TAG)}", node) from None
    raise _error(f"tag {node.tag} is not supported", node)


def _mapping(
    node: yaml.MappingNode, path: FieldPath, lines: dict[FieldPath, int], seen: set[int]
) -> dict[Hashable, Any]:
    mapping: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error("a key must be text", key_node)
        key = _text(key_node)
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
            return _text(node)
        case "null":
            return None
        case "bool":
            return bool(text.lower() == "true")
        case "int":
            if len(text.lstrip("+-0")) > _MOST_DIGITS:
                raise _error(f"a whole number of more than {_MOST_DIGITS} digits", node)
            return int(text)
        case "float":
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise _error(f"tag {node.tag} is not supported", node)


def _text(node: yaml.ScalarNode) -> str:
    text = str(node.value)
    if any(unicodedata.category(each) in ("Cc", "Cs") for each in text if each not in _LAYOUT):
        raise _error("control characters in text are not supported", node)
    return text


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "not valid YAML: " + " ".join(str(error).split())
    context = f"{error.context}: " if error.context else ""
    return f"line {error.problem_mark.line + 1}: {context}{error.problem}"
