"""A study that is open for training: its workshop, its Optuna study, its tracker."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from knee_tune.app.home import Home, Places
from knee_tune.app.placement import GroupOptions
from knee_tune.app.workshop import Workshop, open_workshop
from knee_tune.errors import UserError
from knee_tune.planning.plan import Placement
from knee_tune.planning.planner import (
    budget_steps,
    check_warmup,
    distinct_fractions,
    twins_in_words,
)
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.space import ExploreFractionSpace
from knee_tune.specs.study import StudySpec
from knee_tune.specs.tracking import StudyStarted
from knee_tune.tasks.registry import task_entry
from knee_tune.tracking import Tracker, experiment_name, open_tracker, provenance
from knee_tune.tuning.patience import patience_with
from knee_tune.tuning.points import Axis
from knee_tune.tuning.preload import preload
from knee_tune.tuning.pruners import make_pruner
from knee_tune.tuning.recovery import stale_trial_callback
from knee_tune.tuning.samplers import make_sampler
from knee_tune.tuning.storage import check_storage_url, open_storage
from knee_tune.tuning.study import Study, open_study, spec_of


@dataclass(frozen=True, kw_only=True)
class OpenedStudy:
    """What training for a study needs."""

    places: Places
    workshop: Workshop
    study: Study
    tracker: Tracker
    axes: dict[str, Axis]

    @property
    def uid(self) -> str:
        """Unique for ever, also when a study of the same name is made anew."""
        return f"{self.study.study_name}-{self.study.user_attrs['key']}"

    @property
    def on_interrupt(self) -> Callable[[], None]:
        """To be called when Ctrl-C comes: nothing waits for the storage any more."""
        return patience_with(self.places.storage_url).interrupt

    @property
    def unfused(self) -> str:
        """Why replicates train one by one; empty if as one batched model."""
        return _unfused(self.study, self.workshop)

    @property
    def fused(self) -> bool:
        """Whether the replicates of a trial train as one batched model."""
        return self.workshop.spec.replicates > 1 and not self.unfused

    @property
    def batched(self) -> bool:
        """Whether all trials that are left do: a grid in which nothing is pruned."""
        spec = self.workshop.spec
        return spec.sampler == "grid" and spec.acting_pruner == "none" and not self.unfused


@contextmanager
def open_for_training(
    spec: StudySpec,
    recipe: Recipe,
    places: Places,
    options: GroupOptions,
    *,
    beside: bool = False,
) -> Iterator[OpenedStudy]:
    """Open everything, the study last: until its task's data is seen to be there, nothing is made.

    ``beside``: what is trained lies outside the search, so a study that is there keeps the one that
    it was asked for. The tracker is left to the caller to close, who can say what it could not
    send. UserError if this machine or this study cannot train what is asked for.
    """
    check_storage_url(places.storage_url)
    preloading = preload(sampler=spec.sampler)
    with open_workshop(places.home, spec, recipe, options) as workshop:
        workshop = _without_twins(workshop)
        spec, recipe = workshop.spec, workshop.recipe
        preloading.join()
        placement = workshop.placement()  # before a study is made: the machine may be too small
        axes = {
            "seed_lr": Axis(spec.seed_lrs, log=True),
            "explore_fraction": Axis(spec.explore_fractions),
        }
        tracker = open_tracker(
            home=places.home.root, uri=places.tracking_uri, gone=lambda: workshop.held.gone
        )
        storage = open_storage(places.storage_url, on_stale=stale_trial_callback(tracker))
        study = open_study(
            storage,
            spec,
            recipe=recipe,
            data_fingerprint=workshop.facts.data_fingerprint,
            amp=placement.amp,
            beside=beside,
        )
        study.sampler = make_sampler(spec.sampler, seed=spec.seed, axes=axes)
        total_steps = budget_steps(recipe, workshop.facts)
        study.pruner = make_pruner(
            spec.acting_pruner,
            total_steps=total_steps,
            replicates=spec.replicates if _unfused(study, workshop) else 1,
        )
        opened = OpenedStudy(
            places=places,
            workshop=workshop,
            study=study,
            tracker=tracker,
            axes=axes,
        )
        opened.tracker.record(_study_started(opened, placement))
        yield opened


@contextmanager
def reopen_workshop(
    home: Home, study: Study, options: GroupOptions, *, amp: bool | None = None
) -> Iterator[Workshop]:
    """The workshop of a study, to look once more at what it trained.

    ``amp``: bf16 autocast where there is a GPU; as the recipe says if None. UserError if the data
    has changed since: every number would be another one.
    """
    spec = spec_of(study)
    recipe = task_entry(spec.task).recipe_type().model_validate(spec.recipe)
    if amp is not None:
        recipe = recipe.model_copy(update={"amp": amp})
    with open_workshop(home, spec, recipe, options) as workshop:
        if workshop.facts.data_fingerprint != study.user_attrs["data_fingerprint"]:
            raise UserError(
                f"study {spec.name}: its data has changed since, so its numbers do not come again; "
                "put the old data back"
            )
        yield workshop


def _without_twins(workshop: Workshop) -> Workshop:
    """``workshop`` with explore fractions that all differ in their schedule.

    UserError where the warmup takes the whole budget.
    """
    spec, recipe, facts = workshop.spec, workshop.recipe, workshop.facts
    if spec.compare is not None:
        return workshop
    check_warmup(recipe, facts)
    distinct = distinct_fractions(recipe, facts, spec.explore_fractions)
    if len(distinct) == len(spec.explore_fractions):
        return workshop
    space = ExploreFractionSpace(values=tuple(sorted(distinct)))
    return replace(
        workshop,
        spec=spec.model_copy(
            update={"space": spec.space.model_copy(update={"explore_fraction": space})}
        ),
        remarks=(
            *workshop.remarks,
            *twins_in_words(recipe, facts, spec.explore_fractions),
        ),
    )


def _unfused(study: Study, workshop: Workshop) -> str:
    if not spec_of(study).fuse:
        return "this study was begun with --no-fuse"
    return workshop.facts.unfusable


def _study_started(opened: OpenedStudy, placement: Placement) -> StudyStarted:
    workshop, spec = opened.workshop, spec_of(opened.study)
    return StudyStarted(
        uid=opened.uid,
        name=workshop.spec.name,
        task=workshop.spec.task,
        experiment=experiment_name(spec.subject),
        description=workshop.spec.description,
        params={
            "recipe": workshop.spec.recipe,
            "space": workshop.spec.space.model_dump(mode="json", exclude_none=True),
            "seed": workshop.spec.seed,
            "steps_per_epoch": workshop.facts.steps_per_epoch,
            "parameters": workshop.facts.parameters,
            "examples": workshop.facts.examples,
        },
        tags={
            **provenance(),
            "knee.preset": workshop.spec.preset,
            "knee.data_fingerprint": workshop.facts.data_fingerprint,
            "knee.device": placement.device,
            "knee.world_size": str(placement.world_size),
        },
    )
