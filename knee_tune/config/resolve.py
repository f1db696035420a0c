"""From files and options to one validated study.

Later wins: recipe class defaults < preset < study file < settings < fields. Every layer is
validated as it is laid on, so a mistake is reported where it was made.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field
from pydantic_core import to_jsonable_python

from knee_tune.config.recipe import DATA_NAME, BaseRecipe, SearchSpace, Spec, task_slug
from knee_tune.config.strict_yaml import (
    DEEPEST,
    Document,
    FieldPath,
    Place,
    Problem,
    check,
    dotted,
    parse_value,
    refuse,
)
from knee_tune.config.study import SEARCHING, ResolvedStudy, StudySpec
from knee_tune.errors import UserError

R = TypeVar("R", bound=BaseRecipe)


def scaled(study: ResolvedStudy[R], *, name: str) -> ResolvedStudy[R]:
    """A study that was just read, called ``name``, with the budget that it trains.

    A search: epochs and warmup times the study's ``scale``. A comparison: the longest row times
    it; its rows, and its warmup with them, are scaled when they are planned
    (:func:`knee_tune.plans.planner.row_schedule`), so that its table stays the published one.
    """
    table, scale, recipe = study.compare, study.scale, study.typed_recipe
    budget = recipe.budget if table is None else max(row.epochs for row in table.rows)
    recipe = recipe.with_budget(max(1, round(budget * scale)))
    if table is None:
        warmup = round(recipe.warmup_steps * scale)
        recipe = recipe.model_copy(update={"warmup_steps": warmup})
    return study.with_recipe(recipe).model_copy(update={"name": name})


def scaled_name(name: str, scale: float) -> str:
    """Name a study at another scale: budgets are never mixed."""
    return f"{name}-scale{scale:g}"


def refuse_searching(
    layer: Mapping[str, Any], place: Callable[[FieldPath], Place], *, recipe: Sequence[str] = ()
) -> None:
    """Refuse settings of a search, or of the recipe, in a study with ``compare``: UserError."""
    settings = layer.get("recipe", {})
    fields: list[FieldPath] = [(name,) for name in SEARCHING if name in layer]
    fields += [("recipe", name) for name in recipe if name in settings]
    if fields:
        what = "this study trains the rows of its table, which have their own budgets (`scale`)"
        if fields[0][0] != "recipe":
            what = "this study trains the rows of its table and searches nothing; leave it out"
        refuse([Problem(path=field, what=what) for field in fields], place)


@dataclass(frozen=True, kw_only=True)
class Override:
    """One field set from outside the files."""

    label: str
    """What was asked for, for messages: ``settings`` in backticks, then ``recipe.epochs=4``."""
    path: tuple[str, ...]
    value: Any


def parse_override(text: str) -> Override:
    """Read ``recipe.epochs=4`` as an override, its value as YAML; UserError if it is none."""
    label = f"`settings` {text}"
    field, equals, value = text.partition("=")
    path = tuple(field.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"{label}: expected FIELD=VALUE, as in `settings` recipe.epochs=4")
    if len(path) > DEEPEST:
        raise UserError(f"{label}: no field lies {len(path)} levels deep")
    try:
        return Override(label=label, path=path, value=parse_value(value))
    except ValueError as error:
        raise UserError(f"{label}: the value is no YAML: {error}") from None


FIELDS: Mapping[str, tuple[str, ...]] = {
    "seed_lr": ("space", "seed_lr"),
    "explore": ("space", "explore_fraction"),
    "steps": ("recipe", "steps"),
    "evaluate_every": ("recipe", "evaluate_every"),
    "minimize": ("recipe", "objective"),
    "maximize": ("recipe", "objective"),
}
"""Options with a name of their own for a field that lies deeper."""

DEFAULT_FRACTION_STEP = 0.1
"""Distance of two explore fractions where an option names only their ends."""


def overrides_of(settings: Iterable[str], fields: Mapping[str, object]) -> list[Override]:
    """Settings and options as overrides, in the order in which they win; UserError for no value."""
    overrides = [parse_override(text) for text in settings]
    for field, value in fields.items():
        if value is None:
            continue
        name = "study_name" if field == "name" else field
        label, path = f"`{name}` {value}", FIELDS.get(field, (field,))
        if field == "seed_lr":
            value = _span(label, str(value), "per_decade")
        elif field == "explore":
            span = _span(label, str(value), "step")
            value = span if "values" in span else {"step": DEFAULT_FRACTION_STEP} | span
        overrides.append(Override(label=label, path=path, value=value))
        if field in ("minimize", "maximize"):
            overrides.append(Override(label=label, path=("recipe", "direction"), value=field))
    return overrides


def _span(label: str, text: str, distance: str) -> dict[str, Any]:
    """Read ``1e-4:1e-2``, ``1e-4:1e-2:8`` or ``1e-3,3e-3`` as a grid of the search space."""
    try:
        if ":" not in text:
            return {"values": [float(part) for part in text.split(",")]}
        low, high, *rest = text.split(":")
        if len(rest) > 1:
            raise ValueError("too many parts")
        given = {distance: _number(rest[0])} if rest else {}
        return {"low": float(low), "high": float(high), **given}
    except ValueError:
        raise UserError(
            f"{label}: expected LOW:HIGH, LOW:HIGH:{distance.upper()}, or a list with commas"
        ) from None


def _number(text: str) -> int | float:
    return int(text) if text.strip().isdecimal() else float(text)


def sets(settings: Iterable[str], field: str) -> bool:
    """Whether one of the settings (``nproc=2``) is of that field of the study."""
    return any(parse_override(text).path == (field,) for text in settings)


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
    """Lay ``over`` on ``base``: mappings are merged key by key, anything else is replaced.

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


class Preset(Spec):
    """A named variant of a task: a budget, a size, a data set."""

    description: str
    recipe: dict[str, Any] = Field(default_factory=dict, description="over the class's defaults")
    space: dict[str, Any] = Field(default_factory=dict, description="over the file's ``space``")
    trials: int = Field(default=20, gt=0, le=1_000_000)
    nproc: int = Field(default=1, gt=0, le=1_000_000, description="ranks that train one trial")


class SpaceFile(Spec):
    """What ``search_spaces/<task>.yaml`` says."""

    task: str
    description: str
    default_preset: str
    space: SearchSpace
    presets: dict[str, Preset] = Field(min_length=1)


def resolve_study(
    *,
    space_file: Document,
    study_file: Document | None = None,
    recipe_type: Callable[[str], type[R]],
    settings: Sequence[str] = (),
    **fields: object,
) -> ResolvedStudy[R]:
    """The study that files and options describe.

    ``recipe_type`` maps a task's name to its recipe class; ``settings`` set any field
    (``recipe.epochs=4``); ``fields`` are the study's own (``trials=20``) or those of
    :data:`FIELDS`, and None leaves one to the files. UserError, one line, for the first thing that
    is wrong.
    """
    overrides = overrides_of(settings, fields)

    def in_options(path: FieldPath) -> Place:
        return origin_of(overrides, path)

    space = read_space(space_file, recipe_type)
    recipes = recipe_type(space.task)
    in_study = _in_file(study_file) if study_file else in_options
    written = study_file.data if study_file else {}
    asked = layer_of(overrides)
    chosen = space.default_preset
    for layer, place in ((written, in_study), (asked, in_options)):
        if "preset" in layer:
            chosen = layer["preset"]
            _check_preset(chosen, ("preset",), space, place)
    base = _settings_of(space, space_file.data, chosen, recipes)
    described = merge(base, written)
    if study_file is not None:
        _validated(described, recipes, space, in_study)
    study = _validated(merge(described, asked), recipes, space, in_options)
    if study.compare is not None:
        refuse_searching(written, in_study, recipe=("steps",))
        refuse_searching(asked, in_options, recipe=("epochs", "steps"))
    elif study.sampler == "grid" and "trials" not in {**written, **asked}:
        study = study.model_copy(update={"trials": study.size})
    named = "name" in asked or study.scale == described.get("scale", 1.0)
    return scaled(study, name=study.name if named else scaled_name(study.name, study.scale))


def read_space(file: Document, recipe_type: Callable[[str], type[R]]) -> SpaceFile:
    """A search-space file with every preset of it validated, used or not; UserError otherwise."""
    place = _in_file(file)
    space, problems = check(SpaceFile, file.data)
    if space is None:
        refuse(problems, place)
    _check_preset(space.default_preset, ("default_preset",), space, place)
    recipes = recipe_type(space.task)
    for name in space.presets:
        _validated(
            _settings_of(space, file.data, name, recipes),
            recipes,
            space,
            place,
            prefix=("presets", name),
        )
    return space


def _in_file(file: Document) -> Callable[[FieldPath], Place]:
    return lambda path: Place(file.label, line=file.line(path))


def _check_preset(
    name: object, path: FieldPath, space: SpaceFile, place: Callable[[FieldPath], Place]
) -> None:
    """Refuse a preset that the search space does not have."""
    if name not in list(space.presets):
        problem = Problem(
            path=path,
            what=f"task {space.task} has no such preset",
            value=name,
            allowed=tuple(space.presets),
            asked=str(name),
        )
        refuse([problem], place)


def _settings_of(
    space: SpaceFile, file: Mapping[str, Any], preset: str, recipe_type: type[BaseRecipe]
) -> dict[str, Any]:
    """The settings of a preset over the recipe's own: the lowest layer of a study."""
    chosen = space.presets[preset]
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in recipe_type.model_fields.items()
        if not field.is_required()
    }
    return merge(
        {
            "task": space.task,
            "preset": preset,
            "recipe": to_jsonable_python(defaults),
            "space": file["space"],
        },
        {
            "recipe": chosen.recipe,
            "space": chosen.space,
            "trials": chosen.trials,
            "nproc": chosen.nproc,
        },
    )


def _validated(
    settings: Mapping[str, Any],
    recipe_type: type[R],
    space: SpaceFile,
    place: Callable[[FieldPath], Place],
    prefix: FieldPath = (),
) -> ResolvedStudy[R]:
    """The study of these settings; UserError with ``prefix`` before the field otherwise."""
    recipe, problems = check(recipe_type, settings["recipe"], (*prefix, "recipe"))
    label = _budget_name(settings["preset"], recipe, recipe_type, space) if recipe else "unnamed"
    dumped = recipe.model_dump(mode="json") if recipe else {}
    named = {"name": label, "own_data": _own_data(recipe, recipe_type, space)}
    study, more = check(StudySpec, {**named, **settings, "recipe": dumped}, prefix)
    if study and study.task != space.task:
        problem = Problem(path=(*prefix, "task"), what=f"the search space is of task {space.task}")
        refuse([problem], place)
    if recipe is None or study is None:
        refuse([*problems, *more], place)
    unsearchable = [
        Problem(path=(*prefix, "space", field), what=what)
        for field, what in study.space.problems(recipe.seed_lr, with_default=study.tries_default)
    ]
    if unsearchable:
        refuse(unsearchable, place)
    return ResolvedStudy(**dict(study), typed_recipe=recipe)


def _budget_name(
    preset: str, recipe: BaseRecipe, recipe_type: type[BaseRecipe], space: SpaceFile
) -> str:
    """``knee-<task>-<budget>``: the preset's name unless it is the default, the epochs if needed.

    Studies of different budgets must not share a name, or their trials would be mixed. Data of
    one's own stand in place of the task.
    """
    subject = _own_data(recipe, recipe_type, space) or task_slug(space.task)
    if preset == space.default_preset:
        return f"knee-{subject}-{recipe.budget_name}"
    usual, _ = check(recipe_type, space.presets[preset].recipe)
    changed = usual is None or usual.budget != recipe.budget
    return f"knee-{subject}-{preset}" + (f"-{recipe.budget_name}" if changed else "")


def _own_data(
    recipe: BaseRecipe | None, recipe_type: type[BaseRecipe], space: SpaceFile
) -> str | None:
    """The recipe's data set, unless a preset or the recipe's own default names it too."""
    if recipe is None:
        return None
    if recipe.subject:
        return recipe.subject
    known = {preset.recipe.get("data") for preset in space.presets.values()}
    known |= {field.default for name, field in recipe_type.model_fields.items() if name == "data"}
    data = getattr(recipe, "data", None)
    named = isinstance(data, str) and re.fullmatch(DATA_NAME, data)
    return data if named and data not in known else None
