"""``knee-tune run``: drive a study to its number of trials and register its best model."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from knee_tune.commands.comparison import compare_rows
from knee_tune.commands.confirmation import confirm_winner
from knee_tune.commands.extra_runs import EndedRun, ExtraRun, train_extra_runs
from knee_tune.commands.home import Places
from knee_tune.commands.opened import OpenedStudy, open_for_training, told_end
from knee_tune.commands.publish import LivePages, Published, publish, show_now
from knee_tune.commands.race import race, steps_for_search, steps_trained
from knee_tune.commands.winner import register_study
from knee_tune.commands.workers import GroupOptions, Looked
from knee_tune.config.recipe import (
    BaseRecipe,
)
from knee_tune.config.study import ResolvedStudy
from knee_tune.errors import MachineError, UserError, disk_trouble, first_line
from knee_tune.plans.planner import baseline_schedule, budget_steps, knee_schedule
from knee_tune.records.events import Attached, RegisteredModel, StudyFinished, StudyState
from knee_tune.records.findings import Ridge
from knee_tune.records.study import BaselineRecord, StudyRecord, TrialRecord
from knee_tune.report.run_figures import curves_figure
from knee_tune.study.driver import Driver
from knee_tune.study.earlier import known_earlier
from knee_tune.study.events import Watcher
from knee_tune.study.flat import flat_by
from knee_tune.study.locks import asking_lock
from knee_tune.study.patience import StorageGoneError
from knee_tune.study.pruners import raw_step_warning
from knee_tune.study.recovery import requeue_failed
from knee_tune.study.samplers import Allowance, wanted
from knee_tune.study.study import record_baseline, study_record
from knee_tune.study.trial import Search
from knee_tune.tracking import unsent_notice


@dataclass(frozen=True, kw_only=True)
class StudyStart:
    """What is known when the first trial is about to begin."""

    name: str
    metric: str
    watched: str
    trials: int | None
    """None: what the study may cost ends it."""
    finished: int
    allowance: int = 0
    """Steps that the search may still train, where there is no number of trials."""
    total_steps: int
    parameters: int
    device: str
    world_size: int
    slots: int
    gpus: int
    """On this machine that could have been chosen, used or not."""
    validated: str = ""
    """What metrics of the validation split are taken over, as ``1,190 examples``."""
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
    spec: ResolvedStudy[BaseRecipe],
    places: Places,
    options: GroupOptions,
    *,
    timeout: float | None,
    register: bool,
    watch: Watch,
    looked: Looked | None = None,
) -> RunSummary:
    """Drive the study; the same call continues it.

    After ``timeout`` seconds no trial and no other run is begun. The winner is tested and
    registered once it is known. KeyboardInterrupt (Ctrl-C or SIGTERM) is raised on after every
    running trial was told.
    """
    with (
        open_for_training(spec, places, options, looked=looked) as opened,
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
                    total = opened.total_steps
                    allowance = None if total is None else _allowance(opened, total)
                    _drive(opened, watcher, timeout=left(), pages=pages, allowance=allowance)
                    cut_off = _cut_off(opened, timeout, allowance) or _decide(
                        opened, watcher, total=total, timeout=left()
                    )
                    if cut_off and (total or spec.confirm):
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
    opened: OpenedStudy,
    watcher: Watcher,
    *,
    timeout: float | None,
    pages: LivePages,
    allowance: Allowance | None,
) -> None:
    workers, study = opened.workers, opened.study

    def after_trial(trial: TrialRecord) -> None:
        knee = knee_schedule(workers.recipe, workers.facts, **trial.coordinates)
        title = f"Trial {trial.number}: {trial.setting}"
        figure = curves_figure(trial, title=title, schedule=knee)
        opened.tracker.record(Attached(key=trial.key, name="plots/curves.html", figure=figure))
        pages.changed()

    asking = asking_lock(opened.places.storage_url, study=study.study_name)
    with asking:
        requeue_failed(study)
    Driver(
        Search(
            study=study,
            spec=workers.spec,
            facts=workers.facts,
            axes=opened.axes,
            plan=workers.train_plan,
            fused=opened.fused,
            allowance=allowance,
            batched=opened.batched,
            asking=asking,
        ),
        trainer=workers.trainer,
        slots=workers.options.slots,
        tracker=opened.tracker,
        watcher=watcher,
        after_trial=after_trial,
        on_interrupt=opened.on_interrupt,
    ).run(trials=workers.spec.limit, timeout=timeout)


def _allowance(opened: OpenedStudy, total: int) -> Allowance:
    """What the search may train of ``total`` steps."""
    budget = budget_steps(opened.workers.recipe, opened.workers.facts)
    return Allowance(steps=steps_for_search(total), budget=budget)


def _cut_off(opened: OpenedStudy, timeout: float | None, allowance: Allowance | None) -> str:
    """Why the search is not over yet; empty if it is."""
    spec, study = opened.workers.spec, opened.study
    flat = spec.stop_when_flat and flat_by(study, opened.axes)
    if not flat and wanted(
        study, opened.axes, trials=spec.limit, target=spec.target, allowance=allowance
    ):
        by_us = timeout is not None
        what = "`timeout` ended the search" if by_us else "another driver gave a trial back"
        return f"{what} before its last trial"
    if study_record(study).counts.running:
        return "another driver still trains trials of this study"
    return ""


def _decide(
    opened: OpenedStudy, watcher: Watcher, *, total: int | None, timeout: float | None
) -> str:
    """Race, or confirm the winner, if that is asked for; why that was cut off, empty if not."""
    if total is not None:
        what, done = "race", race(opened, watcher, total=total, timeout=timeout)
    else:
        what, done = "confirmation", confirm_winner(opened, watcher, timeout=timeout)
    return "" if done else f"`timeout` ended the {what} before its last run"


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
        workers=opened.workers,
    )


def study_start(opened: OpenedStudy) -> StudyStart:
    """What a watcher is told of an opened study."""
    workers, spec = opened.workers, opened.workers.spec
    record = study_record(opened.study)
    counts = record.counts
    finished = counts.complete + counts.pruned + counts.failed
    total = opened.total_steps
    trials = None if total else min(spec.trials, spec.size)
    if spec.compare is not None:
        runs = record.run_counts
        finished = runs.complete + runs.pruned
        trials = len(spec.compare.rows) * spec.replicates
    placement = workers.placement()
    return StudyStart(
        name=workers.spec.name,
        metric=workers.recipe.objective_metric.name,
        watched=workers.recipe.watched_metric.name,
        trials=trials,
        finished=finished,
        allowance=steps_for_search(total) - record.steps.trained if total else 0,
        total_steps=budget_steps(workers.recipe, workers.facts),
        parameters=workers.facts.parameters,
        device=placement.device,
        world_size=placement.world_size,
        slots=workers.options.slots,
        validated=(
            f"{count:,} {workers.recipe.counted}"
            if (count := workers.facts.examples.get("valid"))
            else ""
        ),
        gpus=workers.facts.gpus if workers.options.device == "auto" else 0,
        replicates=1 if spec.compare else spec.replicates,
        fused=opened.fused or opened.batched,
        compares=spec.compare is not None,
        remarks=tuple(_remarks(opened)),
    )


def _remarks(opened: OpenedStudy) -> Iterator[str]:
    spec = opened.workers.spec
    yield from opened.workers.remarks
    if earlier := known_earlier(opened.study):
        yield earlier.words
    if others := study_record(opened.study).by_other_code(opened.workers.facts.code):
        yield f"{others}; the report says which is which"
    if spec.compare is not None:
        yield f"every row of {spec.compare.table} is trained; nothing is searched"
        return
    if (total := opened.total_steps) is not None:
        yield (
            f"{total:,} steps in all, {steps_trained(opened):,} of them trained: "
            f"{steps_for_search(total):,} to search, the rest to race the best points with fresh "
            "random seeds"
        )
    elif spec.trials >= spec.size:
        yield f"{spec.size} trials are every point of the search space; the study ends with them"
    if spec.goal == "ridge":
        yield (
            "pruning is off: this study looks for the ridge, the best explore fraction of every "
            "seed LR, and pruning would bias it"
        )
    elif warning := raw_step_warning(spec.acting_pruner):
        yield warning
    if opened.workers.options.compile and (opened.batched or opened.fused):
        yield "`compile`: a batched model is not compiled; with `fuse=False` every one is"
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
            **({"knee.best_decay": winner.decay} if winner.decay else {}),
            "knee.best_confirmed": winner.confirmed,
        },
    )


def run_baseline(
    spec: ResolvedStudy[BaseRecipe],
    places: Places,
    options: GroupOptions,
    *,
    schedule_name: str,
    seed_lr: float | None,
    watch: Watch,
    looked: Looked | None = None,
) -> BaselineRecord:
    """Train one schedule at ``seed_lr`` (the recipe's own if None) and keep it with the study.

    It is no trial: the search never sees it. UserError or MachineError if the training fails.
    """
    with (
        open_for_training(spec, places, options, looked=looked, beside=True) as opened,
        watch(study_start(opened)) as watcher,
        told_end(
            opened.tracker,
            uri=places.tracking_uri,
            finished=lambda _: StudyFinished(),  # what its search came to is another matter
            on_line=watcher.line,
        ),
    ):
        ended = _train_baseline(opened, watcher, schedule_name, seed_lr)
        record = BaselineRecord(
            **dict(ended.record), schedule=schedule_name, seed_lr=ended.run.schedule.seed_lr
        )
        record_baseline(opened.study, record)
    if ended.failure is not None:
        raise ended.error(f"`schedule` {schedule_name}: {record.reason}")
    return record


def _train_baseline(
    opened: OpenedStudy, watcher: Watcher, schedule_name: str, seed_lr: float | None
) -> EndedRun:
    workers = opened.workers
    seed_lr = seed_lr or workers.recipe.seed_lr
    run = ExtraRun(
        key=f"baseline-{schedule_name}-{seed_lr:g}",
        name=f"{schedule_name} {seed_lr:g}",
        schedule=baseline_schedule(schedule_name, workers.recipe, workers.facts, seed_lr=seed_lr),
        seed=workers.spec.seed,
        label=schedule_name,
    )
    (ended,) = train_extra_runs(opened, watcher, [run])
    return ended
