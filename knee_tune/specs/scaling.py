"""Studies at a fraction of their budget (``--scale``), and what a comparison leaves no room for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from knee_tune.specs.problems import Place, Problem, refuse
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.strict_yaml import FieldPath
from knee_tune.specs.study import SEARCHING, StudySpec


def scaled(study: StudySpec, recipe: Recipe, *, name: str) -> tuple[StudySpec, Recipe]:
    """A study that was just read, called ``name``, with the budget that it trains.

    A search: epochs and warmup times the study's ``scale``. A comparison: the longest row times
    it; its rows, and its warmup with them, are scaled when they are planned
    (:func:`knee_tune.planning.rows.row_schedule`), so that its table stays the published one.
    """
    table, scale = study.compare, study.scale
    if table is not None:
        longest = max(row.epochs for row in table.rows)
        budget = {"epochs": max(1, round(longest * scale))}
    else:
        warmup = round(recipe.warmup_steps * scale)
        budget = {"epochs": max(1, round(recipe.epochs * scale)), "warmup_steps": warmup}
    recipe = recipe.model_copy(update=budget)
    changes = {"name": name, "recipe": recipe.model_dump(mode="json")}
    return study.model_copy(update=changes), recipe


def scaled_name(name: str, scale: float) -> str:
    """What a study is called at another scale: budgets are never mixed."""
    return f"{name}-scale{scale:g}"


def refuse_searching(
    layer: Mapping[str, Any], place: Callable[[FieldPath], Place], *, recipe: Sequence[str] = ()
) -> None:
    """UserError for settings of a search, and these of the recipe, in a study with ``compare``."""
    settings = layer.get("recipe", {})
    fields: list[FieldPath] = [(name,) for name in SEARCHING if name in layer]
    fields += [("recipe", name) for name in recipe if name in settings]
    if fields:
        what = "this study trains the rows of its table, which have their own budgets (--scale)"
        if fields[0][0] != "recipe":
            what = "this study trains the rows of its table and searches nothing; leave it out"
        refuse([Problem(path=field, what=what) for field in fields], place)
