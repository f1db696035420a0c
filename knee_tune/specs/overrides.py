"""Settings from the command line, and how one layer of settings is laid over another."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from knee_tune.errors import UserError
from knee_tune.specs.problems import Place, dotted
from knee_tune.specs.strict_yaml import DEEPEST, FieldPath, parse_value


@dataclass(frozen=True, kw_only=True)
class Override:
    """One field set from outside the files."""

    label: str
    """The option as it was typed, for messages: ``--set recipe.epochs=4``."""
    path: tuple[str, ...]
    value: Any


def parse_override(text: str) -> Override:
    """``recipe.epochs=4`` as an override; the value is read as YAML. UserError if it is not one."""
    label = f"--set {text}"
    field, equals, value = text.partition("=")
    path = tuple(field.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"{label}: expected FIELD=VALUE, as in --set recipe.epochs=4")
    if len(path) > DEEPEST:
        raise UserError(f"{label}: no field lies {len(path)} levels deep")
    try:
        return Override(label=label, path=path, value=parse_value(value))
    except ValueError as error:
        raise UserError(f"{label}: the value is no YAML: {error}") from None


def layer_of(overrides: Iterable[Override]) -> dict[str, Any]:
    """The overrides as one nested mapping; a later one wins. UserError where two contradict."""
    layer: dict[str, Any] = {}
    for override in overrides:
        at = layer
        for depth, key in enumerate(override.path[:-1], start=1):
            at = at.setdefault(key, {})
            if not isinstance(at, dict):
                field = dotted(override.path[:depth])
                raise UserError(f"{override.label}: {field} was already set to a single value")
        at[override.path[-1]] = override.value
    return layer


def origin_of(overrides: Iterable[Override], path: FieldPath) -> Place:
    """The override that a problem at ``path`` comes from: the last that sets the nearest field."""
    best = max(enumerate(overrides), key=lambda each: (_shared(each[1].path, path), each[0]))[1]
    return Place(best.label, shows=best.path)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``: mappings are merged key by key, anything else is replaced.

    In ``space`` the two forms of a grid are never mixed: ``values`` replaces low, high and the
    distance, and the other way round.
    """
    return _merged(base, over, ())


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], path: FieldPath) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and not (path == ("space",) and _form(old) != _form(value))
        ):
            result[key] = _merged(old, value, (*path, key))
        else:
            result[key] = value
    return result


def _form(grid: Mapping[str, Any]) -> bool:
    """Whether a grid is given as values."""
    return grid.get("values") is not None


def _shared(left: FieldPath, right: FieldPath) -> int:
    """How many keys two paths have in common from their start."""
    pairs = zip(left, right, strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
