"""A study that is open for training: its workers, its Optuna study, its tracker."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

from knee_tune.commands.home import Home, Places
from knee_tune.commands.workers import GroupOptions, Looked, Workers, open_workers
from knee_tune.config.recipe import BaseRecipe, ExploreFractionSpace, Recipe, task_slug
from knee_tune.config.resolve import resolve_study
from knee_tune.config.strict_yaml import read_files
from knee_tune.config.study import ResolvedStudy, StudySpec
from knee_tune.errors import UserError
from knee_tune.plans.plan import Placement
from knee_tune.plans.planner import (
    budget_steps,
    check_warmup,
    distinct_fractions,
    total_steps,
    twins_in_words,
)
from knee_tune.records.events import StudyFinished, StudyStarted, StudyState, final_name
from knee_tune.study.earlier import known_earlier
from knee_tune.study.patience import patience_with
from knee_tune.study.pruners import make_pruner
from knee_tune.study.recovery import stale_trial_callback
from knee_tune.study.samplers import Axes, axes_of, make_sampler
from knee_tune.study.storage import check_storage_url, open_storage, preload
from knee_tune.study.study import Study, open_study, spec_of
from knee_tune.tasks.registry import task_entry
from knee_tune.tracking import (
    EXIT_PATIENCE,
    Tracker,
    experiment_name,
    open_tracker,
    provenance,
    unsent_notice,
)


@dataclass(frozen=True, kw_only=True)
class OpenedStudy:
    """What training for a study needs."""

    places: Places
    workers: Workers
    study: Study
    tracker: Tracker
    axes: Axes

    @property
    def uid(self) -> str:
        """Unique for ever, also when a study of the same name is made anew."""
        return f"{self.study.study_name}-{self.study.user_attrs['key']}"

    @property
    def on_interrupt(self) -> Callable[[], None]:
        """To be called when Ctrl-C comes: nothing waits for the storage any more."""
        return patience_with(self.places.storage_url).interrupt

    @property
    def total_steps(self) -> int | None:
        """How many may be trained for the study, all in all; None if nobody has said."""
        return total_steps(self.workers.spec, self.workers.recipe, self.workers.facts)

    @property
    def unfused(self) -> str:
        """Why replicates train one by one; empty if as one batched model."""
        return _unfused(self.study, self.workers)

    @property
    def fused(self) -> bool:
        """Whether the replicates of a trial train as one batched model."""
        return self.workers.spec.replicates > 1 and not self.unfused

    @property
    def batched(self) -> bool:
        """Whether all trials that are left do: a grid in which nothing is pruned."""
        spec = self.workers.spec
        unpruned = spec_of(self.study).acting_pruner == "none"
        return spec.sampler == "grid" and unpruned and not self.unfused


@contextmanager
def open_for_training(
    spec: ResolvedStudy[BaseRecipe],
    places: Places,
    options: GroupOptions,
    *,
    looked: Looked | None = None,
    beside: bool = False,
) -> Iterator[OpenedStudy]:
    """Open everything, the study last: until its task's data is seen to be there, nothing is made.

    ``looked``: the worker groups that have looked at what is trained, if there are some already.
    ``beside``: what is trained lies outside the search, so a study that is there keeps the one that
    it was asked for. The tracker is left to the caller to close, who can say what it could not
    send. UserError if this machine or this study cannot train what is asked for.
    """
    check_storage_url(places.storage_url)
    preloading = preload(sampler=spec.sampler)
    with open_workers(
        places.home, spec, options, looked=looked, storage_url=places.storage_url
    ) as workers:
        workers = _without_twins(_beyond_trunk(workers))
        spec, recipe = workers.spec, workers.recipe
        preloading.join()
        placement = workers.placement()  # before a study is made: the machine may be too small
        axes = axes_of(spec)
        tracker = open_tracker(
            home=places.home.root, uri=places.tracking_uri, gone=lambda: workers.held.gone
        )
        storage = open_storage(places.storage_url, on_stale=stale_trial_callback(tracker))
        study = open_study(
            storage,
            spec,
            data_fingerprint=workers.facts.data_fingerprint,
            amp=placement.amp,
            beside=beside,
        )
        earlier = known_earlier(study)
        centre = spec.centre or (recipe.seed_lr if spec.tries_default else None)
        study.sampler = make_sampler(
            spec.sampler,
            seed=spec.seed,
            axes=axes,
            start=spec_of(study).start,
            centre=centre if earlier is None else earlier.seed_lr,
            earlier=() if earlier is None else earlier.points,
        )
        total_steps = budget_steps(recipe, workers.facts)
        study.pruner = make_pruner(
            spec_of(study).acting_pruner,
            total_steps=total_steps,
            replicates=spec.replicates if _unfused(study, workers) else 1,
        )
        opened = OpenedStudy(
            places=places,
            workers=workers,
            study=study,
            tracker=tracker,
            axes=axes,
        )
        opened.tracker.record(_study_started(opened, placement))
        yield opened


@contextmanager
def reopen_workers(
    home: Home, study: Study, options: GroupOptions, *, amp: bool | None = None
) -> Iterator[Workers]:
    """The workers of a study, to look once more at what it trained.

    ``amp``: bf16 autocast where there is a GPU; as the recipe says if None. UserError if the data
    has changed since: every number would be another one.
    """
    spec = resolved(spec_of(study))
    if amp is not None:
        spec = spec.with_recipe(spec.typed_recipe.model_copy(update={"amp": amp}))
    with open_workers(home, spec, options) as workers:
        if workers.facts.data_fingerprint != study.user_attrs["data_fingerprint"]:
            raise UserError(
                f"study {spec.name}: its data has changed since, so its numbers do not come again; "
                "put the old data back"
            )
        yield workers


def _beyond_trunk(workers: Workers) -> Workers:
    """``workers`` with explore fractions as long as the trunk from a file, if there is one.

    That at which a branch leaves at once is one of them. UserError where the budget ends before.
    """
    spec, recipe, trunk = workers.spec, workers.recipe, workers.spec.trunk
    if trunk is None:
        return workers
    total = budget_steps(recipe, workers.facts)
    if not recipe.warmup_steps <= trunk.step < total:
        raise UserError(
            f"`trunk` {trunk.path}@{trunk.step}: it must end after the warmup "
            f"({recipe.warmup_steps} steps) and before the budget ({total} steps) does"
        )
    shortest = (trunk.step - recipe.warmup_steps) / total
    fractions = {shortest, *(each for each in spec.explore_fractions if each > shortest)}
    remark = (
        f"every run begins at step {trunk.step} of {trunk.path}; random seeds differ from there on"
    )
    return _with_fractions(workers, fractions, remark)


def _with_fractions(workers: Workers, fractions: Iterable[float], *remarks: str) -> Workers:
    values = ExploreFractionSpace(values=tuple(sorted(fractions)))
    space = workers.spec.space.model_copy(update={"explore_fraction": values})
    spec = workers.spec.model_copy(update={"space": space})
    return replace(workers, spec=spec, remarks=(*workers.remarks, *remarks))


def _without_twins(workers: Workers) -> Workers:
    """``workers`` with explore fractions that all differ in their schedule.

    UserError where the warmup takes the whole budget, or the study may train too little.
    """
    spec, recipe, facts = workers.spec, workers.recipe, workers.facts
    if spec.compare is not None:
        return workers
    check_warmup(recipe, facts)
    total_steps(spec, recipe, facts)
    distinct = distinct_fractions(recipe, facts, spec.explore_fractions)
    if len(distinct) == len(spec.explore_fractions):
        return workers
    return _with_fractions(
        workers, distinct, *twins_in_words(recipe, facts, spec.explore_fractions)
    )


def _unfused(study: Study, workers: Workers) -> str:
    if not spec_of(study).fuse:
        return "this study was begun with `fuse=False`"
    return workers.facts.unfusable


def _study_started(opened: OpenedStudy, placement: Placement) -> StudyStarted:
    workers, spec = opened.workers, spec_of(opened.study)
    metric = workers.recipe.objective_metric
    return StudyStarted(
        uid=opened.uid,
        name=workers.spec.name,
        task=task_slug(workers.spec.task),
        experiment=experiment_name(spec.subject),
        description=workers.spec.description,
        params={
            "recipe": workers.spec.recipe,
            "space": workers.spec.space.model_dump(mode="json", exclude_none=True),
            "seed": workers.spec.seed,
            "steps_per_epoch": workers.facts.steps_per_epoch,
            "parameters": workers.facts.parameters,
            "examples": workers.facts.examples,
        },
        tags={
            **provenance(),
            "knee.preset": workers.spec.preset,
            "knee.data_fingerprint": workers.facts.data_fingerprint,
            "knee.device": placement.device,
            "knee.world_size": str(placement.world_size),
        },
        objective=final_name(metric.name),
        ascending=metric.direction == "minimize",
    )


def resolve_asked(
    *,
    task: str | None = None,
    study: str | None = None,
    settings: Sequence[str] = (),
    **fields: object,
) -> ResolvedStudy[Recipe]:
    """The validated study that files and options describe; creates nothing.

    ``study``: a file from ``studies/`` by name, or a path. ``settings`` and ``fields`` as
    :func:`resolve_study` reads them. UserError for the first thing that is wrong.
    """
    space_file, study_file = read_files(
        task=task, study=study, space_of=lambda name: task_entry(name).read_space(name)
    )
    return resolve_study(
        space_file=space_file,
        study_file=study_file,
        recipe_type=lambda name: task_entry(name).recipe_type(),
        settings=settings,
        **fields,
    )


def resolved(spec: StudySpec) -> ResolvedStudy[BaseRecipe]:
    """A study that was kept, to be trained further; UserError if its task is not here."""
    recipe = task_entry(spec.task).recipe_type().model_validate(spec.recipe)
    return ResolvedStudy(**dict(spec), typed_recipe=recipe)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM (from a scheduler that preempts) ends a command as cleanly as Ctrl-C."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def told_end(
    tracker: Tracker,
    *,
    uri: str | None,
    finished: Callable[[StudyState], StudyFinished],
    on_line: Callable[[str], None],
) -> Iterator[None]:
    """Whatever happens inside, ``tracker`` records what ``finished`` makes of it and is closed.

    Ctrl-C and SIGTERM raise KeyboardInterrupt inside. ``on_line`` gets the line about what could
    not be sent to ``uri`` (None: nothing is tracked), also where an exception ends it all.
    """
    state: StudyState = "FAIL"
    try:
        with interruptible():
            yield
        state = "COMPLETE"
    except KeyboardInterrupt:
        state = "INTERRUPTED"
        raise
    finally:
        try:
            tracker.record(finished(state))
        finally:
            # who interrupts does not wait for a slow store: what remains is in the outbox
            remaining = tracker.close(None if state == "COMPLETE" else EXIT_PATIENCE)
            if notice := unsent_notice(remaining, uri or ""):
                on_line(notice)
