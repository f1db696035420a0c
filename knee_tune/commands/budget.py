"""``knee-tune budget``: the smallest budget that reaches a target (the paper's Table 7)."""

import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from knee_tune.commands.extra_runs import EndedRun, ExtraRun, Lines, train_extra_runs
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import resolve_asked, told_end
from knee_tune.commands.workers import GroupOptions, Workers, open_workers
from knee_tune.config.recipe import (
    DEFAULT_EXPLORE_FRACTION,
    LARGEST_LR,
    SMALLEST_LR,
    ExploreFractionSpace,
    Recipe,
    task_slug,
)
from knee_tune.config.strict_yaml import nearest
from knee_tune.config.study import ResolvedStudy
from knee_tune.errors import UserError, disk_trouble
from knee_tune.files import write_whole
from knee_tune.plans.planner import (
    BASELINES,
    baseline_schedule,
    check_warmup,
    distinct_fractions,
    knee_schedule,
    twins_in_words,
)
from knee_tune.records.budget import (
    KNEE,
    BudgetRecord,
    BudgetRun,
    check_budgets,
    check_distinct,
    check_no_budget,
    in_epochs,
    read_target,
)
from knee_tune.records.events import Attached, StudyFinished, StudyStarted, StudyState
from knee_tune.records.shown import percent
from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.tracking import Tracker, experiment_name, open_tracker, provenance

SCHEDULES = (KNEE, *BASELINES)
"""What is compared unless told otherwise."""

FIXED_FIELDS = ("task", "recipe", "nproc", "data_fingerprint", "metric", "direction")
"""What may not change while a search lives: its runs would no longer be comparable."""


@dataclass(frozen=True, kw_only=True)
class BudgetSearch:
    """What is asked of a budget search; every budget is a recipe of its own."""

    name: str
    target: float
    schedules: tuple[str, ...]
    seed_lrs: tuple[float, ...]
    explore_fractions: tuple[float, ...]
    budgets: dict[int, ResolvedStudy[Recipe]]

    @property
    def spec(self) -> ResolvedStudy[Recipe]:
        """Of the smallest budget; they differ in their epochs only."""
        return next(iter(self.budgets.values()))

    def at(self, workers: Workers, epochs: int) -> Workers:
        """``workers`` at that budget: same worker groups, same data, same trunks.

        Its explore fractions are those at which any run of the search leaves a trunk, so that the
        trunk is kept there, whichever run trains it.
        """
        spec = self.budgets[epochs]
        # A warmup that is a share was made steps for the smallest budget: they share trunks.
        warmup = {"warmup": None, "warmup_steps": workers.recipe.warmup_steps}
        recipe = spec.typed_recipe.model_copy(update=warmup)
        shares = {f * other / epochs for f in self.explore_fractions for other in self.budgets}
        knees = ExploreFractionSpace(values=tuple(sorted(share for share in shares if share < 1)))
        space = spec.space.model_copy(update={"explore_fraction": knees})
        spec = spec.with_recipe(recipe).model_copy(update={"space": space})
        return replace(workers, spec=spec)


def resolve_budget(
    *,
    target: str,
    budgets: Sequence[int],
    schedules: Sequence[str] = SCHEDULES,
    seed_lrs: Sequence[float] = (),
    explore_fractions: Sequence[float] = (),
    name: str | None = None,
    settings: Sequence[str] = (),
    **asked: Any,
) -> BudgetSearch:
    """The validated search; UserError otherwise. Creates nothing.

    ``budgets``: in epochs, ascending. ``seed_lrs``: the recipe's own if empty, the same for every
    schedule; ``explore_fractions``: the paper's 50 % if empty, knee only. The rest is what
    :func:`resolve_asked` is asked.
    """

    def at(epochs: int, name: str | None) -> ResolvedStudy[Recipe]:
        overrides = (*settings, f"recipe.epochs={epochs}")
        spec = resolve_asked(name=name, settings=overrides, **asked)
        if spec.typed_recipe.epochs != epochs:
            raise UserError(
                f"`settings` scale={spec.scale:g}: `budgets` names the epochs that are trained; "
                "leave the scale out"
            )
        return spec

    check_budgets(budgets)
    check_distinct("`schedules`", schedules)
    for schedule in schedules:
        if schedule not in SCHEDULES:
            close = nearest(schedule, SCHEDULES)
            meant = f"did you mean '{close}'? " if close else ""
            known = ", ".join(SCHEDULES)
            raise UserError(f"`schedules` {schedule}: not known; {meant}known: {known}")
    if explore_fractions and KNEE not in schedules:
        raise UserError("`explore_fractions`: only knee explores; add it to `schedules`")
    check_no_budget(settings)
    spec = at(budgets[0], name)
    recipe = spec.typed_recipe
    value = read_target(target, recipe.metric(recipe.objective))
    shown = f"{value:g}".replace("+", "")
    named = name or f"budget-{spec.subject}-{spec.preset}-{shown}"
    check_distinct("`seed_lrs`", seed_lrs := seed_lrs or (recipe.seed_lr,))
    for seed_lr in seed_lrs:
        if not SMALLEST_LR <= seed_lr <= LARGEST_LR:
            between = f"must lie between {SMALLEST_LR:g} and {LARGEST_LR:g}"
            raise UserError(f"`seed_lrs` {seed_lr:g}: {between}")
    fractions = explore_fractions or (DEFAULT_EXPLORE_FRACTION,)
    check_distinct("`explore_fractions`", fractions)
    for fraction in fractions:
        if not 0 <= fraction < 1:
            between = "must lie between 0 and 1, as in 0.5"
            raise UserError(f"`explore_fractions` {fraction:g}: {between}")
    return BudgetSearch(
        name=named,
        target=value,
        schedules=tuple(schedules),
        seed_lrs=tuple(seed_lrs),
        explore_fractions=tuple(sorted(fractions)),
        budgets={epochs: at(epochs, named) for epochs in budgets},
    )


class KeptSearch:
    """The file of one search: its record, and the attributes that count its steps."""

    def __init__(self, path: Path, record: BudgetRecord, attributes: dict[str, Any]) -> None:
        self._path, self._lock = path, threading.Lock()
        self.record, self.user_attrs = record, attributes

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold, as an Optuna study does; from any thread."""
        with self._lock:
            self.user_attrs[key] = value
            self._write()

    def keep(self, **changes: Any) -> None:
        """Change fields of the record."""
        with self._lock:
            self.record = self.record.model_copy(update=changes)
            self._write()

    def _write(self) -> None:
        kept = {"search": self.record.model_dump(mode="json"), "attributes": self.user_attrs}
        write_whole(self._path, json.dumps(kept))


@contextmanager
def continued_search(home: Home, record: BudgetRecord) -> Iterator[KeptSearch]:
    """The search that is kept under ``record.name``, made if it is new, for this command alone.

    It keeps its key; everything else is as asked now. UserError if it was made with another recipe,
    world size or data, or if another command is at it.
    """
    folder = _folder(home)
    folder.mkdir(exist_ok=True)
    lock = file_lock(folder / f"{record.name}.lock")
    if not try_lock(lock):
        raise UserError(
            f"budget search {record.name}: another command is at it; wait, or choose another `name`"
        )
    try:
        path = folder / f"{record.name}.json"
        key, attributes = uuid.uuid4().hex[:8], dict[str, Any]()
        if path.exists():
            known, attributes = _read(path)
            key = known.key
            for field in FIXED_FIELDS:
                if getattr(known, field) != getattr(record, field):
                    raise UserError(
                        f"budget search {record.name}: it was made with another {field}; choose "
                        "another `name`"
                    )
        kept = KeptSearch(path, record, attributes)
        kept.keep(key=key)
        yield kept
    finally:
        lock.release()


def known_search(home: Home, name: str | None) -> BudgetRecord:
    """The search of that name; without a name, the only one there is. UserError otherwise."""
    names = [path.stem for path in sorted(_folder(home).glob("*.json"))]
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        known = ", ".join(names) or "none yet; start one with `task`, `target` and `budgets`"
        asked = "name a budget search with `name`" if name is None else f"`name` {name}: not here"
        raise UserError(f"{asked}; there are: {known}")
    return _read(_folder(home) / f"{name}.json")[0]


def _folder(home: Home) -> Path:
    return home.root.absolute() / "budgets"


def _read(path: Path) -> tuple[BudgetRecord, dict[str, Any]]:
    try:
        kept = json.loads(path.read_text())
        return BudgetRecord.model_validate(kept["search"]), dict(kept["attributes"])
    except (OSError, ValueError, LookupError, TypeError, ValidationError) as error:
        if disk_trouble(error):
            raise
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); delete it, what was trained is kept "
            "elsewhere"
        ) from error


@dataclass(frozen=True, kw_only=True)
class OpenedSearch:
    """What training for a budget search needs."""

    workers: Workers
    study: KeptSearch
    tracker: Tracker

    def on_interrupt(self) -> None:
        """There is no database to wait for."""


def search_budget(
    search: BudgetSearch, places: Places, options: GroupOptions, watcher: Lines
) -> BudgetRecord:
    """Train budget after budget until every schedule has reached the target, or none is left.

    The same call continues: what was trained before, by anyone in this home, is not trained again.
    UserError or MachineError if a run cannot be trained; KeyboardInterrupt is raised on after its
    end is recorded.
    """
    with open_workers(places.home, search.spec, options, storage_url=places.storage_url) as workers:
        check_warmup(workers.recipe, workers.facts)
        with continued_search(places.home, _untrained(search, workers)) as kept:
            for remark in workers.remarks:
                watcher.line(f"{remark} at every budget, which share trunks")
            tracker = open_tracker(
                home=places.home.root, uri=places.tracking_uri, gone=lambda: workers.held.gone
            )
            opened = OpenedSearch(workers=workers, study=kept, tracker=tracker)
            tracker.record(_started(opened, search))
            with told_end(
                tracker,
                uri=places.tracking_uri,
                finished=lambda state: _finished(opened, state),
                on_line=watcher.line,
            ):
                for epochs in search.budgets:
                    _train(opened, search, epochs, watcher)
                kept.keep(finished=True)
            return kept.record


def _untrained(search: BudgetSearch, workers: Workers) -> BudgetRecord:
    """The record of a search that has trained nothing yet."""
    spec, metric = search.spec, search.spec.typed_recipe.objective_metric
    return BudgetRecord(
        name=search.name,
        key="",
        task=task_slug(spec.task),
        preset=spec.preset,
        recipe={k: value for k, value in workers.spec.recipe.items() if k != "epochs"},
        nproc=workers.placement().world_size,
        data_fingerprint=workers.facts.data_fingerprint,
        metric=metric.name,
        direction=metric.direction,
        target=search.target,
        budgets=tuple(search.budgets),
        schedules=search.schedules,
    )


def _train(opened: OpenedSearch, search: BudgetSearch, epochs: int, watcher: Lines) -> None:
    """Train the schedules that have not reached the target yet at one more budget."""
    kept = opened.study
    left = [name for name in search.schedules if kept.record.smallest(name) is None]
    at = replace(opened, workers=search.at(opened.workers, epochs))
    runs = list(_runs(at.workers, search, left, epochs))
    if not runs:
        return
    watcher.line(f"budget of {in_epochs(epochs)}: {', '.join(left)}; {len(runs)} runs")
    if KNEE in left:
        recipe, facts = at.workers.recipe, at.workers.facts
        for line in twins_in_words(recipe, facts, search.explore_fractions):
            watcher.line(line)
    ends = train_extra_runs(at, watcher, runs)
    for failed in (each for each in ends if each.failure is not None):
        raise failed.error(
            f"budget search {search.name}: {failed.run.name}: {failed.record.reason}; the same "
            "command goes on from here"
        )
    kept.keep(runs=(*kept.record.runs, *(_ended(each, epochs) for each in ends)))


def _runs(
    workers: Workers, search: BudgetSearch, schedules: Sequence[str], epochs: int
) -> Iterator[ExtraRun]:
    """Every run of one budget, each training once: two fractions may come to the same knee.

    Runs on one trunk are kept apart, so that slots which work side by side need not wait for it.
    """
    recipe, facts, seeds = workers.recipe, workers.facts, workers.spec.replicate_seeds
    distinct = distinct_fractions(recipe, facts, search.explore_fractions)
    explored = [fraction for fraction in search.explore_fractions if fraction in distinct]
    for name in schedules:
        fractions = explored if name == KNEE else [None]
        for fraction, seed_lr, seed in product(fractions, search.seed_lrs, seeds):
            if fraction is None:
                explore = shown = ""
                schedule = baseline_schedule(name, recipe, facts, seed_lr=seed_lr)
            else:
                explore, shown = f"-explore{fraction:g}", f", explore {percent(fraction)}"
                schedule = knee_schedule(recipe, facts, seed_lr=seed_lr, explore_fraction=fraction)
            shown += f", seed {seed}" if len(seeds) > 1 else ""
            yield ExtraRun(
                key=f"{name}-{epochs}ep-lr{seed_lr}{explore}-seed{seed}",
                name=f"{name} {in_epochs(epochs)}{shown}",
                schedule=schedule,
                seed=seed,
                label=name,
                explore_fraction=fraction,
            )


def _ended(ended: EndedRun, epochs: int) -> BudgetRun:
    run, record = ended.run, ended.record
    return BudgetRun(
        key=run.key,
        schedule=run.label,
        epochs=epochs,
        seed_lr=run.schedule.seed_lr,
        explore_fraction=run.explore_fraction,
        seed=run.seed,
        value=record.value,
        reason=record.reason,
        steps_trained=record.steps.trained,
        steps_budget=run.schedule.total_steps,
    )


def _started(opened: OpenedSearch, search: BudgetSearch) -> StudyStarted:
    """The search's own MLflow run begins."""
    record, spec = opened.study.record, search.spec
    placement = opened.workers.placement()
    return StudyStarted(
        uid=record.uid,
        name=record.name,
        task=task_slug(spec.task),
        experiment=experiment_name(spec.subject),
        description=f"Smallest budget with {record.metric} {record.target:g}",
        params={"recipe": record.recipe, "target": record.target, "seed": spec.seed},
        tags={
            **provenance(),
            "knee.kind": "budget",
            "knee.budgets": ",".join(map(str, record.budgets)),
            "knee.preset": spec.preset,
            "knee.data_fingerprint": record.data_fingerprint,
            "knee.device": placement.device,
            "knee.world_size": str(placement.world_size),
        },
    )


def _finished(opened: OpenedSearch, state: StudyState) -> StudyFinished:
    """It ends, with what was found so far."""
    found = opened.study.record
    smallest = {name: found.smallest(name) for name in found.schedules}
    metrics = {f"epochs_{name}": float(cell.epochs) for name, cell in smallest.items() if cell}
    cost = found.steps()
    steps = {f"steps_{name}": float(count) for name, count in cost._asdict().items()}
    opened.tracker.record(Attached(name="budget.json", text=found.model_dump_json(indent=2)))
    return StudyFinished(state=state, metrics=metrics | steps)
