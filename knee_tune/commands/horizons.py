"""``knee-tune horizons``: a search at every budget, one trunk for all of them.

Each budget is a study of its own, which every other command knows. The explore phase of a seed LR
is the same at every budget, so longer ones go on from the trunks of shorter ones; and each search
begins where the one before it ended.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.report import usual_path, write_report
from knee_tune.commands.run import Watch, run_study
from knee_tune.commands.script import look_at_script, resolve_script
from knee_tune.commands.workers import GroupOptions, Looked, look_at
from knee_tune.config.recipe import BaseRecipe
from knee_tune.config.study import ResolvedStudy, StudySpec, TrunkFile
from knee_tune.errors import UserError
from knee_tune.files import checksum
from knee_tune.records.budget import check_budgets, check_no_budget
from knee_tune.records.study import StudyRecord
from knee_tune.report.document import Command, ReportContext
from knee_tune.report.horizons import HorizonsReport, horizons_report
from knee_tune.schedules.schedule import LONGEST_RUN
from knee_tune.scripts.recipe import Joined
from knee_tune.stats.horizons import Horizons, horizons_of

FEWEST = 2
"""Budgets of which one can be compared with another."""


class Budgets(NamedTuple):
    """What ``--budgets`` names, ascending."""

    counts: tuple[int, ...]
    in_steps: bool
    """Always steps; else what the recipe counts, epochs or steps."""


def read_budgets(text: str) -> Budgets:
    """Read ``10,20,40`` or ``1000steps,2000steps``; UserError for anything else."""
    parts = [re.fullmatch(r"(\d{1,15})(steps)?", part.strip()) for part in text.split(",")]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        raise UserError(
            f"`budgets` {text}: must be whole numbers with commas between, as in 10,20,40, or "
            "1000steps,2000steps"
        )
    units = {bool(part[2]) for part in found}
    if len(units) > 1:
        raise UserError(
            f"`budgets` {text}: some are steps and some are not; all or none end in 'steps'"
        )
    return Budgets(tuple(int(part[1]) for part in found), units == {True})


def read_trunk(text: str) -> TrunkFile:
    """Read ``FILE@STEP``, and the file's bytes; UserError for what is none."""
    name, _, step = text.rpartition("@")
    if not name or not re.fullmatch(r"[1-9]\d{0,12}", step):
        raise UserError(f"`trunk` {text}: expected FILE@STEP, as in stable.safetensors@5000")
    path = Path(name).absolute()
    try:
        digest = checksum(path)
    except OSError as error:
        raise UserError(f"`trunk` {name}: cannot be read ({error.strerror})") from None
    return TrunkFile(path=path, step=int(step), sha256=digest)


@dataclass(frozen=True, kw_only=True)
class HorizonsSearch:
    """The studies to be driven, by budget, ascending."""

    name: str
    studies: Mapping[str, ResolvedStudy[BaseRecipe]]
    looked: Looked | None = None
    """Worker groups that have looked at a script; None: it is a task."""

    @property
    def spec(self) -> ResolvedStudy[BaseRecipe]:
        """Of the smallest budget; they differ in budget and name."""
        return next(iter(self.studies.values()))


def resolve_horizons(
    *,
    budgets: Budgets,
    trunk: TrunkFile | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    **asked: Any,
) -> HorizonsSearch:
    """The validated studies of a task; UserError otherwise. Creates nothing.

    ``trunk``: what all runs begin with; ``seed_lr`` then says at which LR it was trained. The rest
    is what :func:`resolve_asked` is asked. A warmup that is a share of the budget is the smallest
    one's at all of them, for they share trunks.
    """
    _check(budgets, settings)
    if trunk is not None:
        settings = (*settings, *_of_trunk(asked.get("seed_lr")))
    plain = resolve_asked(name=name, settings=settings, **asked)
    field, unit = plain.typed_recipe.budget_field, plain.typed_recipe.budget_unit
    if budgets.in_steps and unit != "steps":
        field = unit = "steps"
        check_budgets(budgets.counts, unit="step", most=LONGEST_RUN)
    else:
        check_budgets(budgets.counts, unit="epoch" if unit == "ep" else "step")
    _check_search(plain, trunk)
    named = name or f"horizons-{plain.subject}-{plain.preset}"
    studies = {}
    for budget in budgets.counts:
        spec = resolve_asked(
            name=f"{named}-{budget}{unit}",
            settings=(*settings, f"recipe.{field}={budget}"),
            **asked,
        )
        studies[spec.typed_recipe.budget_name] = spec.model_copy(update={"trunk": trunk})
    return HorizonsSearch(name=named, studies=studies)


@contextmanager
def look_at_horizons(
    home: Home,
    script: Path,
    arguments: Sequence[str],
    options: GroupOptions,
    *,
    budgets: Budgets,
    trunk: TrunkFile | None = None,
    name: str | None = None,
    settings: Sequence[str] = (),
    **asked: Any,
) -> Iterator[HorizonsSearch]:
    """The validated studies of a training script, whose budgets are steps.

    It is run up to ``join`` once (:func:`look_at_script`, which takes the rest); what it says there
    goes for every budget, and so does the distance of evaluations, for they share trunks.
    """
    _check(budgets, settings)
    check_budgets(budgets.counts, unit="step", most=LONGEST_RUN)
    if trunk is not None:
        settings = (*settings, *_of_trunk(asked.get("seed_lr")))
    shortest = budgets.counts[0]
    look = look_at_script(
        home, script, arguments, options, settings=settings, name=name, steps=shortest, **asked
    )
    with look as (plain, looked):
        recipe = plain.typed_recipe
        _check_search(plain, trunk)
        named = name or f"horizons-{plain.subject}"
        said: dict[str, object] = {"script": str(recipe.script), "arguments": [*recipe.arguments]}
        asked["evaluate_every"] = recipe.evaluate_every
        studies = {}
        for budget in budgets.counts:
            spec = resolve_script(
                said,
                Joined.model_validate(looked.joined),
                settings=settings,
                name=f"{named}-{budget}{recipe.budget_unit}",
                steps=budget,
                **asked,
            )
            studies[spec.typed_recipe.budget_name] = spec.model_copy(update={"trunk": trunk})
        yield HorizonsSearch(name=named, studies=studies, looked=looked)


def _check(budgets: Budgets, settings: Sequence[str]) -> None:
    """UserError for what can be no horizons, whatever is trained."""
    if len(budgets.counts) < FEWEST:
        (only,) = budgets.counts
        raise UserError(f"`budgets` {only}: horizons are compared; give {FEWEST} or more")
    check_no_budget(settings)


def _of_trunk(seed_lr: object) -> tuple[str, ...]:
    """Settings of searches whose runs begin with a trunk from a file, trained at ``seed_lr``.

    There is one seed LR, so every explore fraction is tried, and nothing is fused.
    """
    try:
        lr = float(str(seed_lr))
    except ValueError:
        raise UserError(
            "`trunk`: at which LR was it trained? name that one with `seed_lr`, as in `seed_lr` 0.1"
        ) from None
    return (f"recipe.seed_lr={lr!r}", "sampler=grid", "fuse=false")


def _check_search(plain: StudySpec, trunk: TrunkFile | None) -> None:
    """UserError for a study that is searched in another way, or at another budget than is named."""
    if plain.scale != 1:
        raise UserError(f"`settings` scale={plain.scale:g}: `budgets` names what is trained")
    model = plain.sampler in ("gp", "tpe") or trunk is not None
    if plain.compare is not None or not model:
        raise UserError(
            f"`sampler` {plain.sampler}: horizons search with a model, gp or tpe; leave it out"
        )
    if plain.recipe.get("phases"):
        raise UserError("recipe.phases: the phases of one budget are not those of another")


@dataclass(frozen=True, kw_only=True)
class HorizonsSummary:
    """What the searches leave behind."""

    records: tuple[StudyRecord, ...]
    """Of all budgets, ascending."""
    found: Horizons | None
    """None: no trial of any budget is complete."""
    report: Path | None
    """The page, if it could be written."""
    unanswered: str
    """Budgets without a complete trial, and what to do about it, one line; empty without any."""


def search_horizons(
    search: HorizonsSearch,
    places: Places,
    options: GroupOptions,
    *,
    watch: Watch,
    on_line: Callable[[str], None] = print,
) -> HorizonsSummary:
    """Drive the studies one after the other; what they say together, and its report.

    The same call continues. UserError or MachineError where a study cannot be trained.
    """
    warmup: int | None = None
    centre: float | None = None
    records: list[StudyRecord] = []
    with ExitStack() as stack:
        looked = search.looked
        if looked is None:  # the budgets of a task have data, model and worker groups in common
            spec = search.spec
            looking = look_at(
                places.home,
                spec.task,
                spec.recipe,
                options,
                logs=spec.name,
                seed=spec.seed,
                trunk_file=spec.trunk,
            )
            looked = stack.enter_context(looking)
        for spec in search.studies.values():
            recipe = spec.typed_recipe
            if recipe.warmup is not None and warmup is not None:
                shared = {"warmup": None, "warmup_steps": warmup}
                spec = spec.with_recipe(recipe.model_copy(update=shared))
            spec = spec.model_copy(update={"centre": centre})
            record = run_study(
                spec,
                places,
                options,
                timeout=None,
                register=False,
                watch=watch,
                looked=looked,
            ).record
            warmup = int(record.spec.recipe["warmup_steps"])
            if record.best is not None:
                centre = record.best.seed_lr
            records.append(record)
    found = horizons_of(records, [*search.studies])
    page = None if found is None else write_horizons(search, places, found, on_line=on_line)
    return HorizonsSummary(
        records=tuple(records),
        found=found,
        report=page,
        unanswered=_unanswered(dict(zip(search.studies, records, strict=True))),
    )


def _unanswered(records: Mapping[str, StudyRecord]) -> str:
    missing = [
        f"{budget} (study {record.name}: {record.counts.pruned} pruned or diverged, "
        f"{record.counts.failed} failed)"
        for budget, record in records.items()
        if record.best is None
    ]
    if not missing:
        return ""
    return (
        f"no trial is complete at {' and '.join(missing)}; search lower seed LRs with `settings` "
        "space.seed_lr.low=LR, or more `trials`"
    )


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
