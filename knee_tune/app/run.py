"""``knee-tune run``: drive a study to its number of trials and register its best model."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from knee_tune.app.comparison import compare_rows
from knee_tune.app.confirm import confirm_winner
from knee_tune.app.ending import told_end
from knee_tune.app.home import Places
from knee_tune.app.opened import OpenedStudy, open_for_training
from knee_tune.app.placement import GroupOptions
from knee_tune.app.publish import LivePages, Published, publish, show_now
from knee_tune.app.request import StudyRequest
from knee_tune.app.winner import register_study
from knee_tune.errors import MachineError, UserError, disk_trouble, first_line
from knee_tune.planning.planner import budget_steps, knee_schedule
from knee_tune.reporting.curves import curves_figure
from knee_tune.schedules import Knee
from knee_tune.specs.records import StudyRecord, TrialRecord
from knee_tune.specs.ridge import Ridge
from knee_tune.specs.shown import setting
from knee_tune.specs.tracking import Attached, RegisteredModel, StudyFinished, StudyState
from knee_tune.tracking import unsent_notice
from knee_tune.tuning.asking import asking_lock
from knee_tune.tuning.driver import Driver
from knee_tune.tuning.listeners import Watcher
from knee_tune.tuning.patience import StorageGoneError
from knee_tune.tuning.points import wanted
from knee_tune.tuning.pruners import raw_step_warning
from knee_tune.tuning.recovery import requeue_failed
from knee_tune.tuning.study import study_record
from knee_tune.tuning.trial import Search


@dataclass(frozen=True, kw_only=True)
class StudyStart:
    """What is known when the first trial is about to begin."""

    name: str
    task: str
    preset: str
    metric: str
    watched: str
    trials: int
    finished: int
    total_steps: int
    parameters: int
    device: str
    world_size: int
    slots: int
    gpus: int
    """On this machine that could have been chosen, used or not."""
    validated: int = 0
    """Examples that every metric of the validation split is taken over."""
    replicates: int = 1
    fused: bool = False
    """Whether they train together, as one batched model."""
    compares: bool = False
    """A comparison has no trials: runs of a table's rows are counted instead."""
    remarks: tuple[str, ...] = ()
    """What people should know about how this study prunes."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run leaves behind."""

    record: StudyRecord
    ridge: Ridge | None
    report: Path | None
    """The HTML file."""

    registered: RegisteredModel | None
    unregistered: str = ""
    """Why the best model is not registered, if it was to be."""


Watch = Callable[[StudyStart], AbstractContextManager[Watcher]]


def run_study(
    request: StudyRequest,
    places: Places,
    options: GroupOptions,
    *,
    timeout: float | None,
    register: bool,
    watch: Watch,
) -> RunSummary:
    """Drive the study; the same call continues it.

    After ``timeout`` seconds no trial and no other run is begun. The winner is tested and
    registered once it is known. KeyboardInterrupt (Ctrl-C or SIGTERM) is raised on after every
    running trial was told.
    """
    spec, recipe = request.resolve()
    with (
        open_for_training(spec, recipe, places, options) as opened,
        watch(study_start(opened)) as watcher,
    ):
        published = Published()
        began = time.monotonic()

        def left() -> float | None:
            return None if timeout is None else timeout - (time.monotonic() - began)

        def finished(state: StudyState) -> StudyFinished:
            if state != "COMPLETE":
                show_now(opened, on_line=watcher.line)
            return _finished(study_record(opened.study), state, published)

        registered, unregistered = None, ""
        uri = places.tracking_uri
        with told_end(opened.tracker, uri=uri, finished=finished, on_line=watcher.line):
            with LivePages(opened, on_line=watcher.line) as pages:
                if spec.compare is not None:
                    compare_rows(opened, watcher, timeout=left(), on_change=pages.changed)
                    cut_off = ""
                else:
                    _drive(opened, watcher, timeout=left(), pages=pages)
                    cut_off = _cut_off(opened, timeout) or _confirm(opened, watcher, left())
                    if cut_off and spec.confirm is not None:
                        watcher.line(
                            f"not confirmed yet: {cut_off}; the same command again goes on"
                        )
            if register and uri and study_record(opened.study).best:
                registered, unregistered = _try_to_register(opened, watcher, cut_off)
            published = publish(opened, on_line=watcher.line)
        return RunSummary(
            record=study_record(opened.study),
            ridge=published.ridge,
            report=published.report,
            registered=registered,
            unregistered=unregistered,
        )


def _drive(
    opened: OpenedStudy, watcher: Watcher, *, timeout: float | None, pages: LivePages
) -> None:
    workshop, study = opened.workshop, opened.study

    def schedule(seed_lr: float, explore_fraction: float) -> Knee:
        return knee_schedule(
            workshop.recipe, workshop.facts, seed_lr=seed_lr, explore_fraction=explore_fraction
        )

    def after_trial(trial: TrialRecord) -> None:
        knee = schedule(trial.seed_lr, trial.explore_fraction)
        title = f"Trial {trial.number}: {setting(trial.seed_lr, trial.explore_fraction)}"
        figure = curves_figure(trial, title=title, schedule=knee)
        opened.tracker.record(Attached(key=trial.key, name="plots/curves.html", figure=figure))
        pages.changed()

    asking = asking_lock(opened.places.storage_url, study=study.study_name)
    with asking:
        requeue_failed(study)
    Driver(
        Search(
            study=study,
            recipe=workshop.recipe,
            axes=opened.axes,
            seeds=workshop.spec.replicate_seeds,
            schedule=schedule,
            plan=workshop.train_plan,
            code=workshop.facts.code,
            parameters=workshop.facts.parameters,
            fused=opened.fused,
            batched=opened.batched,
            asking=asking,
        ),
        trainer=workshop.trainer,
        slots=workshop.options.slots,
        tracker=opened.tracker,
        watcher=watcher,
        after_trial=after_trial,
        on_interrupt=opened.on_interrupt,
    ).run(trials=workshop.spec.limit, timeout=timeout)


def _cut_off(opened: OpenedStudy, timeout: float | None) -> str:
    """Why the winner is not known yet; empty if it is."""
    if wanted(opened.study, opened.axes, trials=opened.workshop.spec.limit):
        by_us = timeout is not None
        what = "--timeout ended the search" if by_us else "another driver gave a trial back"
        return f"{what} before its last trial"
    if study_record(opened.study).counts.running:
        return "another driver still trains trials of this study"
    return ""


def _confirm(opened: OpenedStudy, watcher: Watcher, timeout: float | None) -> str:
    """Confirm the winner, if that is asked for; why that was cut off, empty if it was not."""
    done = confirm_winner(opened, watcher, timeout=timeout)
    return "" if done else "--timeout ended the confirmation before its last run"


def _try_to_register(
    opened: OpenedStudy, watcher: Watcher, cut_off: str
) -> tuple[RegisteredModel | None, str]:
    """The registered winner, or why there is none: the study is done either way.

    StorageGoneError is raised on: whatever else reads the study would wait for it again.
    """
    try:
        return _register(opened, watcher, cut_off), ""
    except StorageGoneError:
        raise
    except (UserError, MachineError) as error:
        return None, f"not registered: {error}"
    except Exception as error:  # of the task's code, the store's, or a disk's
        if trouble := disk_trouble(error):
            return None, f"not registered: {trouble}"
        what = f"{type(error).__name__}: {first_line(error)}"
        return None, f"not registered ({what}); knee-tune register shows where"


def _register(opened: OpenedStudy, watcher: Watcher, cut_off: str) -> RegisteredModel:
    """Test and register the winner; UserError if that cannot be done now.

    Not one that the next trial may beat: the test split is looked at once, not at every call.
    """
    if cut_off:
        raise UserError(
            f"{cut_off}; the same command again goes on, knee-tune register takes the best so far"
        )
    if notice := unsent_notice(opened.tracker.flush(), opened.places.tracking_uri or ""):
        raise UserError(f"{notice}, and knee-tune register registers the model")
    return register_study(
        opened.places,
        opened.study.study_name,
        number=None,
        on_line=watcher.line,
        workshop=opened.workshop,
    )


def study_start(opened: OpenedStudy) -> StudyStart:
    """What a watcher is told of an opened study."""
    workshop, spec = opened.workshop, opened.workshop.spec
    record = study_record(opened.study)
    counts = record.counts
    finished = counts.complete + counts.pruned + counts.failed
    trials = min(spec.trials, spec.size)
    if spec.compare is not None:
        runs = record.run_counts
        finished = runs.complete + runs.pruned
        trials = len(spec.compare.rows) * spec.replicates
    placement = workshop.placement()
    return StudyStart(
        name=workshop.spec.name,
        task=workshop.spec.task,
        preset=workshop.spec.preset,
        metric=f"valid_{workshop.recipe.objective}",
        watched=f"valid_{workshop.recipe.watched}",
        trials=trials,
        finished=finished,
        total_steps=budget_steps(workshop.recipe, workshop.facts),
        parameters=workshop.facts.parameters,
        device=placement.device,
        world_size=placement.world_size,
        slots=workshop.options.slots,
        validated=workshop.facts.examples.get("valid", 0),
        gpus=workshop.facts.gpus if workshop.options.device == "auto" else 0,
        replicates=1 if spec.compare else spec.replicates,
        fused=opened.fused or opened.batched,
        compares=spec.compare is not None,
        remarks=tuple(_remarks(opened)),
    )


def _remarks(opened: OpenedStudy) -> Iterator[str]:
    spec = opened.workshop.spec
    yield from opened.workshop.remarks
    if others := study_record(opened.study).by_other_code(opened.workshop.facts.code):
        yield f"{others}; the report says which is which"
    if spec.compare is not None:
        yield f"every row of {spec.compare.table} is trained; nothing is searched"
        return
    if spec.trials >= spec.size:
        yield f"{spec.size} trials are every point of the search space; the study ends with them"
    if spec.goal == "ridge":
        yield (
            "pruning is off: this study looks for the ridge, the best explore fraction of every "
            "seed LR, and pruning would bias it"
        )
    elif warning := raw_step_warning(spec.acting_pruner):
        yield warning
    if opened.workshop.options.compile and (opened.batched or opened.fused):
        yield "--compile: a batched model is not compiled; with --no-fuse every one is"
    if opened.batched:
        points = min(spec.limit or spec.size, spec.size)
        yield f"{points * spec.replicates:,} replicas train as one batched model"
    elif opened.fused:
        yield f"{spec.replicates} replicas train as one batched model"
    elif spec.replicates > 1:
        yield f"replicates train one by one: {opened.unfused}"


def _finished(
    record: StudyRecord,
    ended: StudyState,
    published: Published,
) -> StudyFinished:
    winner = record.winner
    metrics = {f"steps_{name}": float(count) for name, count in record.steps}
    metrics |= published.metrics
    if winner is None or winner.value is None:
        return StudyFinished(state=ended, metrics=metrics, tags=dict(published.tags))
    metrics[f"best_{record.metric}"] = winner.value
    return StudyFinished(
        state=ended,
        metrics=metrics,
        tags={
            **published.tags,
            "knee.best_trial": str(winner.trial.number) if winner.trial else "none",
            "knee.best_seed_lr": f"{winner.seed_lr:g}",
            "knee.best_explore_fraction": f"{winner.explore_fraction:g}",
            "knee.best_confirmed": winner.confirmed,
        },
    )
