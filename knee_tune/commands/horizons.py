"""``knee-tune horizons``: a search at every budget, one trunk for all of them.

Each budget is a study of its own, which every other command knows. The explore phase of a seed LR
is the same at every budget, so longer ones go on from the trunks of shorter ones; and each search
begins where the one before it ended.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knee_tune.commands.home import Places
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.report import usual_path, write_report
from knee_tune.commands.run import Watch, run_study
from knee_tune.commands.workers import GroupOptions
from knee_tune.config.recipe import Recipe
from knee_tune.config.study import StudySpec
from knee_tune.errors import UserError
from knee_tune.records.budget import check_budgets
from knee_tune.records.study import StudyRecord
from knee_tune.report.document import Command, ReportContext
from knee_tune.report.horizons import HorizonsReport, horizons_report
from knee_tune.stats.horizons import Horizons, horizons_of

FEWEST = 2
"""Budgets of which one can be compared with another."""


@dataclass(frozen=True, kw_only=True)
class HorizonsSearch:
    """The studies to be driven, by budget, ascending."""

    name: str
    studies: dict[str, tuple[StudySpec, Recipe]]

    @property
    def spec(self) -> StudySpec:
        """Of the smallest budget; they differ in budget and name."""
        return next(iter(self.studies.values()))[0]


def resolve_horizons(
    *, budgets: Sequence[int], name: str | None = None, settings: Sequence[str] = (), **asked: Any
) -> HorizonsSearch:
    """The validated studies; UserError otherwise. Creates nothing.

    ``budgets``: in epochs, ascending. The rest is what :func:`resolve_asked` is asked. A warmup
    that is a share of the budget is the smallest one's at all of them, for they share trunks.
    """
    check_budgets(budgets)
    if len(budgets) < FEWEST:
        raise UserError(f"`budgets` {budgets[0]}: horizons are compared; give {FEWEST} or more")
    if any(setting.startswith("recipe.epochs") for setting in settings):
        raise UserError("`settings` recipe.epochs: `budgets` names the epochs")
    plain, _ = resolve_asked(name=name, settings=settings, **asked)
    if plain.scale != 1:
        raise UserError(f"`settings` scale={plain.scale:g}: `budgets` names what is trained")
    if plain.compare is not None or plain.sampler in ("grid", "random"):
        raise UserError(
            f"`sampler` {plain.sampler}: horizons search with a model, gp or tpe; leave it out"
        )
    if plain.recipe.get("phases"):
        raise UserError("recipe.phases: the phases of one budget are not those of another")
    named = name or f"horizons-{plain.subject}-{plain.preset}"
    studies = {}
    for epochs in budgets:
        spec, recipe = resolve_asked(
            name=f"{named}-{epochs}{Recipe.budget_unit}",
            settings=(*settings, f"recipe.epochs={epochs}"),
            **asked,
        )
        studies[recipe.budget_name] = (spec, recipe)
    return HorizonsSearch(name=named, studies=studies)


def search_horizons(
    search: HorizonsSearch,
    places: Places,
    options: GroupOptions,
    *,
    watch: Watch,
    on_line: Callable[[str], None] = print,
) -> tuple[Horizons, Path | None]:
    """Drive the studies one after the other; what they say together, and its report.

    The same call continues. UserError or MachineError where a study cannot be trained.
    """
    warmup: int | None = None
    centre: float | None = None
    records: list[StudyRecord] = []
    for spec, recipe in search.studies.values():
        if recipe.warmup is not None and warmup is not None:
            recipe = recipe.model_copy(update={"warmup": None, "warmup_steps": warmup})
            spec = spec.model_copy(update={"recipe": recipe.model_dump(mode="json")})
        spec = spec.model_copy(update={"centre": centre})
        found = run_study(spec, recipe, places, options, timeout=None, register=False, watch=watch)
        record = found.record
        warmup = int(record.spec.recipe["warmup_steps"])
        if record.best is not None:
            centre = record.best.seed_lr
        records.append(record)
    found_together = horizons_of(records, [*search.studies])
    return found_together, write_horizons(search, places, found_together, on_line=on_line)


def write_horizons(
    search: HorizonsSearch, places: Places, found: Horizons, *, on_line: Callable[[str], None]
) -> Path | None:
    """Write the page; None, and a line that says why, if it cannot be written."""
    report = report_of(search, places, found)
    path = usual_path(places, search.name, "html")
    try:
        return write_report(report, path, "html")
    except UserError as error:
        on_line(str(error))
        return None


def report_of(search: HorizonsSearch, places: Places, found: Horizons) -> HorizonsReport:
    """The report on all horizons."""
    commands = tuple(
        Command(what=f"The report of {each.budget}", text=places.command("report", each.study))
        for each in found.horizons
    )
    context = ReportContext(written=time.time(), replay=commands)
    return horizons_report(found, name=search.name, spec=search.spec, context=context)
