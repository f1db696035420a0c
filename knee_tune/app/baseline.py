"""``knee-tune run --schedule NAME``: a schedule of the paper's baselines, outside the search."""

from knee_tune.app.ending import told_end
from knee_tune.app.extra_runs import EndedRun, ExtraRun, train_extra_runs
from knee_tune.app.home import Places
from knee_tune.app.opened import OpenedStudy, open_for_training
from knee_tune.app.placement import GroupOptions
from knee_tune.app.request import StudyRequest
from knee_tune.app.run import Watch, study_start
from knee_tune.planning.planner import baseline_schedule
from knee_tune.specs.records import BaselineRecord
from knee_tune.specs.tracking import StudyFinished
from knee_tune.tuning.listeners import Watcher
from knee_tune.tuning.study import record_baseline


def run_baseline(
    request: StudyRequest,
    places: Places,
    options: GroupOptions,
    *,
    schedule_name: str,
    seed_lr: float | None,
    watch: Watch,
) -> BaselineRecord:
    """Train one schedule at ``seed_lr`` (the recipe's own if None) and keep it with the study.

    It is no trial: the search never sees it. UserError or MachineError if the training fails.
    """
    spec, recipe = request.resolve()
    with (
        open_for_training(spec, recipe, places, options, beside=True) as opened,
        watch(study_start(opened)) as watcher,
        told_end(
            opened.tracker,
            uri=places.tracking_uri,
            finished=lambda _: StudyFinished(),  # what its search came to is another matter
            on_line=watcher.line,
        ),
    ):
        ended = _train_baseline(opened, watcher, schedule_name, seed_lr or recipe.seed_lr)
        record = BaselineRecord(**dict(ended.record), schedule=schedule_name)
        record_baseline(opened.study, record)
    if ended.failure is not None:
        raise ended.error(f"--schedule {schedule_name}: {record.reason}")
    return record


def _train_baseline(
    opened: OpenedStudy, watcher: Watcher, schedule_name: str, seed_lr: float
) -> EndedRun:
    workshop = opened.workshop
    run = ExtraRun(
        key=f"baseline-{schedule_name}-{seed_lr:g}",
        name=f"{schedule_name} {seed_lr:g}",
        schedule=baseline_schedule(schedule_name, workshop.recipe, workshop.facts, seed_lr=seed_lr),
        seed=workshop.spec.seed,
        label=schedule_name,
    )
    (ended,) = train_extra_runs(opened, watcher, [run])
    return ended
