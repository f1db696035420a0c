"""``knee-tune run``: drive a study to its number of trials and register its best model."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from knee_tune.app.comparison import compare_rows
from knee_tune.app.confirm import confirm_winner
from knee_tune.app.home import Places
from knee_tune.app.opened import OpenedStudy, open_for_training
from knee_tune.app.publish import LivePages, Published, publish, show_now
from knee_tune.app.request import StudyRequest
from knee_tune.app.winner import register_study
from knee_tune.app.workshop import GroupOptions
from knee_tune.errors import UserError
from knee_tune.planning.planner import budget_steps, knee_schedule
from knee_tune.reporting.curves import curves_figure
from knee_tune.schedules import Knee
from knee_tune.specs.records import StudyRecord, TrialRecord
from knee_tune.specs.ridge import Ridge
from knee_tune.specs.tracking import Attached, RegisteredModel, StudyFinished
from knee_tune.tracking import unsent_notice
from knee_tune.tuning.asking import asking_lock
from knee_tune.tuning.driver import Driver
from knee_tune.tuning.listeners import Watcher
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
    """On this machine, used or not."""
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
    notices: tuple[str, ...]
    """What could not be done yet, because the tracking server did not answer."""


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

    KeyboardInterrupt (Ctrl-C or SIGTERM) is raised on after every running trial was told.
    """
    spec, recipe = request.resolve()
    with open_for_training(spec, recipe, places, options) as opened:
        ended: Literal["COMPLETE", "INTERRUPTED", "FAIL"] = "FAIL"
        registered, notices, published = None, [], Published()
        try:
            with interruptible(), watch(study_start(opened)) as watcher:
                with LivePages(opened, on_line=watcher.line) as pages:
                    if spec.compare is not None:
                        compare_rows(opened, watcher, timeout=timeout, on_change=pages.changed)
                    else:
                        _drive(opened, watcher, timeout=timeout, pages=pages)
                        if _search_is_over(opened, watcher):
                            confirm_winner(opened, watcher)
                if register and places.tracking_uri and study_record(opened.study).best:
                    try:
                        registered = _register(opened, watcher)
                    except UserError as error:  # the study is done, whatever the registry says
                        notices.append(f"not registered: {error}")
                published = publish(opened, on_line=watcher.line)
            ended = "COMPLETE"
        except KeyboardInterrupt:
            ended = "INTERRUPTED"
            raise
        finally:
            try:
                if ended != "COMPLETE":
                    show_now(opened, on_line=notices.append)
                record = study_record(opened.study)
                opened.tracker.record(_finished(record, ended, published))
            finally:
                remaining = opened.tracker.close()
        if notice := unsent_notice(remaining, places.tracking_uri or ""):
            notices.append(notice)
        return RunSummary(
            record=record,
            ridge=published.ridge,
            report=published.report,
            registered=registered,
            notices=tuple(notices),
        )


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
        point = f"seed LR {trial.seed_lr:g}, explore {trial.explore_fraction:.0%}"
        title = f"Trial {trial.number}: {point}"
        figure = curves_figure(trial, title=title, total_steps=knee.total_steps, lr=knee.lr)
        opened.tracker.record(Attached(key=trial.key, name="plots/curves.html", figure=figure))
        pages.changed()

    asking = asking_lock(opened.places.storage_url, study=study.study_name)
    if workshop.spec.sampler == "grid":
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
    ).run(trials=workshop.spec.limit, timeout=timeout)


def _search_is_over(opened: OpenedStudy, watcher: Watcher) -> bool:
    """Whether the winner is known; a confirmation before that would be of somebody else."""
    spec = opened.workshop.spec
    if wanted(opened.study, opened.axes, trials=spec.limit):
        cut_off = "--timeout ended the search before its last trial"
    elif study_record(opened.study).counts.running:
        cut_off = "another driver still trains trials of this study"
    else:
        return True
    if spec.confirm is not None:
        watcher.line(f"not confirmed yet: {cut_off}; the same command again goes on")
    return False


def _register(opened: OpenedStudy, watcher: Watcher) -> RegisteredModel:
    if opened.tracker.flush():
        raise UserError("the tracking server does not answer; knee-tune register does it later")
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
        gpus=workshop.facts.gpus,
        replicates=1 if spec.compare else spec.replicates,
        fused=opened.fused or opened.batched,
        compares=spec.compare is not None,
        remarks=tuple(_remarks(opened)),
    )


def _remarks(opened: OpenedStudy) -> Iterator[str]:
    spec = opened.workshop.spec
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
    ended: Literal["COMPLETE", "INTERRUPTED", "FAIL"],
    published: Published,
) -> StudyFinished:
    best = record.best
    metrics = {f"steps_{name}": float(count) for name, count in record.steps}
    metrics |= published.metrics
    if best is None or best.value is None:
        return StudyFinished(state=ended, metrics=metrics, tags=dict(published.tags))
    metrics[f"best_{record.metric}"] = best.value
    return StudyFinished(
        state=ended,
        metrics=metrics,
        tags={
            **published.tags,
            "knee.best_trial": str(best.number),
            "knee.best_seed_lr": f"{best.seed_lr:g}",
            "knee.best_explore_fraction": f"{best.explore_fraction:g}",
        },
    )
