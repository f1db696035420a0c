"""``knee-tune budget``: the smallest budget that reaches a target (the paper's Table 7)."""

import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from knee_tune.commands.extra_runs import ExtraRun, Lines, train_extra_runs
from knee_tune.commands.home import Home, Places
from knee_tune.commands.opened import resolve_asked, told_end
from knee_tune.commands.workers import GroupOptions, Workers, open_workers
from knee_tune.config.recipe import (
    DEFAULT_EXPLORE_FRACTION,
    LARGEST_LR,
    SMALLEST_LR,
    ExploreFractionSpace,
    Recipe,
)
from knee_tune.config.strict_yaml import nearest
from knee_tune.config.study import StudySpec
from knee_tune.errors import UserError, disk_trouble
from knee_tune.files import write_whole
from knee_tune.plans.plan import Schedule
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
    in_epochs,
    read_target,
)
from knee_tune.records.events import Attached, StudyFinished, StudyStarted, StudyState
from knee_tune.records.shown import percent
from knee_tune.runs.locks import file_lock, try_lock
from knee_tune.tracking import Tracker, experiment_name, open_tracker, provenance

# Which budget search a person asks for, and what it comes to once files and options are merged.

SCHEDULES = (KNEE, *BASELINES)
"""What is compared unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class BudgetRequest:
    """A budget search as options name it."""

    study: Mapping[str, Any]
    """What :func:`resolve_asked` is asked besides epochs and name."""
    settings: Sequence[str] = ()
    name: str | None = None
    """None: of the task, the preset and the target."""
    target: str
    budgets: tuple[int, ...]
    """In epochs, ascending."""
    seed_lrs: tuple[float, ...] = ()
    """Empty: the recipe's own. The same for every schedule."""
    explore_fractions: tuple[float, ...] = ()
    """Empty: the paper's 50 %. Knee only."""
    schedules: tuple[str, ...] = SCHEDULES

    def resolve(self) -> "Search":
        """The validated search; UserError otherwise. Creates nothing."""
        check_budgets(self.budgets)
        check_distinct("`schedules`", self.schedules)
        for name in self.schedules:
            if name not in SCHEDULES:
                close = nearest(name, SCHEDULES)
                meant = f"did you mean '{close}'? " if close else ""
                known = ", ".join(SCHEDULES)
                raise UserError(f"`schedules` {name}: not known; {meant}known: {known}")
        if self.explore_fractions and KNEE not in self.schedules:
            raise UserError("`explore_fractions`: only knee explores; add it to `schedules`")
        if any("recipe.epochs" in setting for setting in self.settings):
            raise UserError("`settings` recipe.epochs: `budgets` names the epochs")
        first, recipe = self._at(self.budgets[0], name=self.name)
        target = read_target(self.target, recipe.metric(recipe.objective))
        shown = f"{target:g}".replace("+", "")
        name = self.name or f"budget-{first.subject}-{first.preset}-{shown}"
        seed_lrs = self.seed_lrs or (recipe.seed_lr,)
        check_distinct("`seed_lrs`", seed_lrs)
        for seed_lr in seed_lrs:
            if not SMALLEST_LR <= seed_lr <= LARGEST_LR:
                raise UserError(
                    f"`seed_lrs` {seed_lr:g}: must lie between {SMALLEST_LR:g} and {LARGEST_LR:g}"
                )
        fractions = self.explore_fractions or (DEFAULT_EXPLORE_FRACTION,)
        check_distinct("`explore_fractions`", fractions)
        for fraction in fractions:
            if not 0 <= fraction < 1:
                raise UserError(
                    f"`explore_fractions` {fraction:g}: must lie between 0 and 1, as in 0.5"
                )
        return Search(
            name=name,
            target=target,
            schedules=self.schedules,
            seed_lrs=seed_lrs,
            explore_fractions=tuple(sorted(fractions)),
            budgets={epochs: self._at(epochs, name=name) for epochs in self.budgets},
        )

    def _at(self, epochs: int, *, name: str | None) -> tuple[StudySpec, Recipe]:
        settings = (*self.settings, f"recipe.epochs={epochs}")
        spec, recipe = resolve_asked(**self.study, settings=settings, name=name)
        if recipe.epochs != epochs:
            raise UserError(
                f"`settings` scale={spec.scale:g}: `budgets` names the epochs that are trained; "
                "leave the scale out"
            )
        return spec, recipe


@dataclass(frozen=True, kw_only=True)
class Search:
    """A budget search, resolved: every budget is a recipe of its own."""

    name: str
    target: float
    schedules: tuple[str, ...]
    seed_lrs: tuple[float, ...]
    explore_fractions: tuple[float, ...]
    budgets: dict[int, tuple[StudySpec, Recipe]]

    @property
    def spec(self) -> StudySpec:
        """Of the smallest budget; they differ in their epochs only."""
        return next(iter(self.budgets.values()))[0]

    @property
    def recipe(self) -> Recipe:
        """Of the smallest budget."""
        return next(iter(self.budgets.values()))[1]

    @property
    def metric(self) -> str:
        """What the target is of, with its split."""
        return self.recipe.objective_metric.name

    def at(self, workers: Workers, epochs: int) -> Workers:
        """``workers`` at that budget: same worker groups, same data, same trunks.

        Its explore fractions are those at which any run of the search leaves a trunk, so that the
        trunk is kept there, whichever run trains it.
        """
        spec, recipe = self.budgets[epochs]
        # A warmup that is a share was made steps for the smallest budget: they share trunks.
        warmup = {"warmup": None, "warmup_steps": workers.recipe.warmup_steps}
        recipe = recipe.model_copy(update=warmup)
        shares = {f * other / epochs for f in self.explore_fractions for other in self.budgets}
        knees = ExploreFractionSpace(values=tuple(sorted(share for share in shares if share < 1)))
        space = spec.space.model_copy(update={"explore_fraction": knees})
        changes = {"space": space, "recipe": recipe.model_dump(mode="json")}
        return replace(workers, spec=spec.model_copy(update=changes), recipe=recipe)

    def points(self, schedule: str) -> list[tuple[float | None, float]]:
        """Explore fraction and seed LR of every setting of a schedule."""
        fractions = self.explore_fractions if schedule == KNEE else (None,)
        return list(product(fractions, self.seed_lrs))


# Budget searches that are kept: one JSON file each, in ``<home>/budgets``.

FIXED_FIELDS = ("task", "recipe", "nproc", "data_fingerprint", "metric", "direction")
"""What may not change while a search lives: its runs would no longer be comparable."""


class KeptSearch:
    """The file of one search: its record, and the attributes that count its steps."""

    def __init__(
        self, path: Path, record: BudgetRecord, attributes: dict[str, Any] | None = None
    ) -> None:
        self._path, self._record, self._attributes = path, record, attributes or {}
        self._lock = threading.Lock()

    @property
    def record(self) -> BudgetRecord:
        """What was found so far."""
        return self._record

    @property
    def user_attrs(self) -> dict[str, Any]:
        """As an Optuna study has them."""
        return self._attributes

    def set_user_attr(self, key: str, value: Any) -> None:
        """Keep a value that JSON can hold; from any thread."""
        with self._lock:
            self._attributes[key] = value
            self._write()

    def keep(self, record: BudgetRecord) -> None:
        """Replace the record."""
        with self._lock:
            self._record = record
            self._write()

    def _write(self) -> None:
        """The file appears whole or not at all."""
        kept = {"search": self._record.model_dump(mode="json"), "attributes": self._attributes}
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
        key, attributes = uuid.uuid4().hex[:8], None
        if path.exists():
            known, attributes = _read(path)
            _refuse_changes(known, record)
            key = known.key
        kept = KeptSearch(path, record, attributes)
        kept.keep(record.model_copy(update={"key": key}))
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


def _refuse_changes(old: BudgetRecord, new: BudgetRecord) -> None:
    for field in FIXED_FIELDS:
        if getattr(old, field) != getattr(new, field):
            raise UserError(
                f"budget search {new.name}: it was made with another {field}; choose another `name`"
            )


@dataclass(frozen=True, kw_only=True)
class OpenedSearch:
    """What training for a budget search needs."""

    workers: Workers
    study: KeptSearch
    tracker: Tracker

    def on_interrupt(self) -> None:
        """There is no database to wait for."""


def search_budget(
    search: Search, places: Places, options: GroupOptions, watcher: Lines
) -> BudgetRecord:
    """Train budget after budget until every schedule has reached the target, or none is left.

    The same call continues: what was trained before, by anyone in this home, is not trained again.
    UserError or MachineError if a run cannot be trained; KeyboardInterrupt is raised on after its
    end is recorded.
    """
    with (
        open_workers(places.home, search.spec, search.recipe, options) as workers,
        continued_search(places.home, _asked(search, workers)) as kept,
    ):
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
            kept.keep(kept.record.model_copy(update={"finished": True}))
        return kept.record


def _asked(search: Search, workers: Workers) -> BudgetRecord:
    """The record of a search that has trained nothing yet.

    UserError if its smallest budget is all warmup.
    """
    check_warmup(workers.recipe, workers.facts)
    spec, metric = search.spec, search.recipe.metric(search.recipe.objective)
    return BudgetRecord(
        name=search.name,
        key="",
        task=spec.task,
        preset=spec.preset,
        recipe={k: value for k, value in workers.spec.recipe.items() if k != "epochs"},
        nproc=workers.placement().world_size,
        data_fingerprint=workers.facts.data_fingerprint,
        metric=f"valid_{metric.name}",
        direction=metric.direction,
        target=search.target,
        budgets=tuple(search.budgets),
        schedules=search.schedules,
    )


def _train(opened: OpenedSearch, search: Search, epochs: int, watcher: Lines) -> None:
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
    ends = train_extra_runs(at, watcher, [extra for extra, _ in runs])
    done = []
    for (extra, asked), ended in zip(runs, ends, strict=True):
        record = ended.record
        if ended.failure is not None:
            raise ended.error(
                f"budget search {search.name}: {extra.name}: {record.reason}; the same command "
                "goes on from here"
            )
        trained = {"steps_trained": record.steps_trained, "reason": record.reason}
        done.append(asked.model_copy(update={"value": record.value, **trained}))
    kept.keep(kept.record.model_copy(update={"runs": (*kept.record.runs, *done)}))


def _runs(
    workers: Workers, search: Search, schedules: Sequence[str], epochs: int
) -> Iterator[tuple[ExtraRun, BudgetRun]]:
    """Every run of one budget, each training once: two fractions may come to the same knee.

    Runs on one trunk are kept apart, so that slots which work side by side need not wait for it.
    """
    distinct = distinct_fractions(workers.recipe, workers.facts, search.explore_fractions)
    for name in schedules:
        for (fraction, seed_lr), seed in product(search.points(name), workers.spec.replicate_seeds):
            if fraction is not None and fraction not in distinct:
                continue
            schedule = _schedule(name, workers, seed_lr=seed_lr, explore_fraction=fraction)
            explore = "" if fraction is None else f"-explore{fraction:g}"
            key = f"{name}-{epochs}ep-lr{seed_lr}{explore}-seed{seed}"
            shown = "" if fraction is None else f", explore {percent(fraction)}"
            several = len(workers.spec.replicate_seeds) > 1
            yield (
                ExtraRun(
                    key=key,
                    name=f"{name} {in_epochs(epochs)}{shown}"
                    + (f", seed {seed}" if several else ""),
                    schedule=schedule,
                    seed=seed,
                    label=name,
                    explore_fraction=fraction,
                ),
                BudgetRun(
                    key=key,
                    schedule=name,
                    epochs=epochs,
                    seed_lr=seed_lr,
                    explore_fraction=fraction,
                    seed=seed,
                    steps_budget=schedule.total_steps,
                ),
            )


def _schedule(
    name: str, workers: Workers, *, seed_lr: float, explore_fraction: float | None
) -> Schedule:
    recipe, facts = workers.recipe, workers.facts
    if explore_fraction is None:
        return baseline_schedule(name, recipe, facts, seed_lr=seed_lr)
    return knee_schedule(recipe, facts, seed_lr=seed_lr, explore_fraction=explore_fraction)


def _started(opened: OpenedSearch, search: Search) -> StudyStarted:
    """The search's own MLflow run begins."""
    record, spec = opened.study.record, search.spec
    placement = opened.workers.placement()
    return StudyStarted(
        uid=record.uid,
        name=record.name,
        task=spec.task,
        experiment=experiment_name(spec.subject),
        description=f"Smallest budget with {record.metric} {record.target:g}",
        params={
            "recipe": record.recipe,
            "target": record.target,
            "seed": spec.seed,
        },
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
    steps = {
        "steps_trained": float(cost.trained),
        "steps_independent": float(cost.independent),
    }
    opened.tracker.record(Attached(name="budget.json", text=found.model_dump_json(indent=2)))
    return StudyFinished(state=state, metrics=metrics | steps)
