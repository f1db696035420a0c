"""YAML without surprises: where its files are, what they say, and what is wrong with it, in a line.

Plain scalars mean what YAML 1.2 and people say they mean: ``1e-3`` is a number, ``no`` and ``on``
are text, ``010`` is ten. A key given twice, an anchor or a tag is refused, and so is what no
setting needs: a huge file, deep nesting, a number beyond 64 bits, text with control characters.
"""

import difflib
import json
import re
import types
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

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
    """Loader of nodes whose tags follow our own reading of plain scalars."""

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


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with one field."""

    path: FieldPath
    what: str
    value: Any = None
    """The scalar that was given, if it helps to see it."""
    allowed: tuple[str, ...] = ()
    """What could stand there instead; the one nearest to ``asked`` is suggested."""
    asked: str = ""
    unknown_key: bool = False

    def advice(self) -> str:
        """The nearest allowed word, and all of them."""
        close = nearest(self.asked, self.allowed)
        meant = f"did you mean '{close}'? " if close else ""
        listed = f"allowed: {', '.join(self.allowed)}" if self.allowed else ""
        return (meant + listed).strip()


@dataclass(frozen=True)
class Place:
    """Where a problem comes from."""

    label: str
    line: int | None = None
    shows: FieldPath | None = None
    """The field and its value that ``label`` itself already shows, as that of a setting does."""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``word`` was most probably meant to be, if one is close enough."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), None)


def dotted(path: FieldPath) -> str:
    """A field path as people write it: ``space.seed_lr.values.0``."""
    return ".".join(str(key) for key in path)


def check(
    model: type[M], data: object, prefix: FieldPath = ()
) -> tuple[M | None, tuple[Problem, ...]]:
    """Validate ``data`` as a ``model``, or say what is wrong, with ``prefix`` before every path.

    Data is read as strictly as JSON: the text "4" is no number, 4.5 is no integer.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True), ()
    except ValidationError as error:
        return None, tuple(_problem(model, dict(detail), prefix) for detail in error.errors())


def refuse(problems: Sequence[Problem], place: Callable[[FieldPath], Place]) -> NoReturn:
    """Raise the first of ``problems`` as a UserError that also says how many more there are.

    A misspelled key comes first, since it makes others look missing.
    """
    problem, *more = sorted(problems, key=lambda problem: not problem.unknown_key)
    origin = place(problem.path)
    shown = origin.shows == problem.path
    facts = []
    if problem.value is not None and not shown:
        facts.append(f"value {json.dumps(problem.value, ensure_ascii=False):.60}")
    if origin.line is not None:
        facts.append(f"line {origin.line}")
    parts = [origin.label, *([] if shown or not problem.path else [dotted(problem.path)])]
    message = ": ".join([*parts, problem.what]) + (f" ({', '.join(facts)})" if facts else "")
    advice = problem.advice()
    message += f"; {advice}" if advice else ""
    message += f" (and {len(more)} more)" if more else ""
    raise UserError(message)


def _problem(model: type[BaseModel], detail: dict[str, Any], prefix: FieldPath) -> Problem:
    loc, context, value = detail["loc"], detail.get("ctx", {}), detail["input"]
    path = (*prefix, *loc)
    shown = value if isinstance(value, str | int | float) else None
    match detail["type"]:
        case "extra_forbidden":
            return Problem(
                path=path,
                what="unknown key",
                value=shown,
                allowed=tuple(sorted(_keys(model, loc[:-1]))),
                asked=str(loc[-1]),
                unknown_key=True,
            )
        case "missing":
            return Problem(path=path, what="missing, and it has no default")
        case "literal_error":
            return Problem(
                path=path,
                what="not one of the allowed values",
                value=shown,
                allowed=_choices(context["expected"]),
                asked=str(value),
            )
        case "value_error":
            return Problem(path=path, what=str(context["error"]), value=shown)
        case "model_type" | "dict_type":
            return Problem(path=path, what="must be a mapping of keys to values", value=shown)
    return Problem(path=path, what=_reworded(detail["msg"]), value=shown)


def _reworded(message: str) -> str:
    """pydantic's "Input should be ..." as what the field must be."""
    subject, should, rest = message.partition(" should ")
    return f"must {rest}" if should else subject[:1].lower() + subject[1:]


def _choices(expected: str) -> tuple[str, ...]:
    """pydantic's "'gp', 'tpe' or 'random'" as single words."""
    return tuple(part.strip().strip("'") for part in expected.replace(" or ", ", ").split(","))


def _keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The fields of the model that stands at ``loc`` below ``model``."""
    at: Any = model
    for key in loc:
        at = _plain(at)
        if isinstance(at, type) and issubclass(at, BaseModel):
            field = at.model_fields.get(str(key))
            at = field.annotation if field else None
        elif get_origin(at) is tuple:
            at = get_args(at)[0]
        elif get_args(at):
            at = get_args(at)[-1]
    at = _plain(at)
    fields: Mapping[str, Any] = getattr(at, "model_fields", {})
    return list(fields)


def _plain(annotation: Any) -> Any:
    """The type inside ``Annotated[...]`` and ``... | None``."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
        else:
            return annotation


Kind = Literal["search_spaces", "studies"]

_NOUN = {"search_spaces": "task", "studies": "study"}

_PACKAGE = Path(__file__).resolve().parent.parent


def available(kind: Kind) -> dict[str, Path]:
    """Every search space or study by name; the working folder's win over the packaged ones."""
    files: dict[str, Path] = {}
    for folder in (_packaged(kind), Path(kind)):
        files |= {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return dict(sorted(files.items()))


def find(kind: Kind, name: str) -> Path:
    """The file called ``name``, or the file at the path ``name`` if it looks like one.

    UserError with the nearest name if there is none.
    """
    noun = _NOUN[kind]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            found = path.is_file()
        except OSError as error:  # a name too long, a folder that may not be read
            if disk_trouble(error):
                raise
            raise UserError(f"{noun} {name}: {error.strerror}") from None
        if not found:
            raise UserError(f"{noun} {name}: no such file")
        return path
    files = available(kind)
    if name not in files:
        close = nearest(name, files)
        meant = f"did you mean '{close}'? " if close else ""
        raise UserError(f"{noun} {name}: not known; {meant}known: {', '.join(files)}")
    return files[name]


def read_files(
    *, task: str | None, study: str | None, space_of: Callable[[str], Document] | None = None
) -> tuple[Document, Document | None]:
    """The search space of a task, and the study file if one is asked for.

    ``space_of``: what has the search space of a task; the files that come with knee-tune if None.

    ``study`` (a name or a path) decides the task, unless ``task`` is given too: then the two must
    agree. UserError if there is neither, or a file is not to be found.
    """
    space_of = space_of or partial(read_named, "search_spaces")
    study_file = read_named("studies", study) if study is not None else None
    if study_file is not None:
        of_study = study_file.data.get("task")
        if not isinstance(of_study, str):
            raise UserError(f"{study_file.label}: task: missing; name the task that is studied")
        if task not in (None, of_study):
            raise UserError(f"`task` {task}: {study_file.label} is a study of task {of_study}")
        try:
            space_file = space_of(of_study)
        except UserError as error:
            raise UserError(f"{study_file.label}: {error}") from None
        named = {"task": space_file.data.get("task", of_study)} if ":" in of_study else {}
        return space_file, replace(study_file, data={**study_file.data, **named})
    if task is None:
        raise UserError("give `task` or `study`: which task is to be studied?")
    return space_of(task), None


def read_named(kind: Kind, name: str) -> Document:
    """The search space or study of that name, or in the file at that path."""
    path = find(kind, name)
    folder = Path.cwd()
    inside = path.is_absolute() and path.is_relative_to(folder)
    return read_document(path, str(path.relative_to(folder) if inside else path))


def _packaged(kind: Kind) -> Path:
    """The folder inside the installed package, or the repository's in a source checkout."""
    installed = _PACKAGE / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind
