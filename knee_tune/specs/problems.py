"""What is wrong with a setting, in one line: where, which field, which value, what is allowed."""

import difflib
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from knee_tune.errors import UserError
from knee_tune.specs.strict_yaml import FieldPath

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
    """The field and its value that ``label`` itself already shows, as ``--set`` does."""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``word`` was most probably meant to be, if one is close enough."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), None)


def dotted(path: FieldPath) -> str:
    """A field path as people write it: ``space.seed_lr.values.0``."""
    return ".".join(str(key) for key in path)


def check(
    model: type[M], data: object, prefix: FieldPath = ()
) -> tuple[M | None, tuple[Problem, ...]]:
    """``data`` as a ``model``, or what is wrong with it, with ``prefix`` before every path.

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
