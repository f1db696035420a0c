"""``knee-tune run --schedule NAME``: a schedule of the paper's baselines, outside the search."""

import time
from collections.abc import Sequence
from typing import Any, Literal

from knee_tune.app.home import Places
from knee_tune.app.opened import OpenedStudy, open_for_training
from knee_tune.app.request import StudyRequest
from knee_tune.app.run import Watch, interruptible, study_start
from knee_tune.app.workshop import GroupOptions
from knee_tune.distributed.protocol import Decision, Failure, Outcome, Report
from knee_tune.errors import UserError
from knee_tune.planning.checkpoint_folder import discard_checkpoints
from knee_tune.planning.plan import TrainPlan
from knee_tune.planning.planner import baseline_schedule
from knee_tune.reporting.curves import curves_figure
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.records import BaselineRecord, Evaluation
from knee_tune.specs.tracking import (
    Attached,
    StudyFinished,
    TrialFinished,
    TrialReported,
    TrialStarted,
)
from knee_tune.tuning.listeners import TOLD, Watcher
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

    It is no trial: the search never sees it. UserError if the training fails.
    """
    spec, recipe = request.resolve()
    with open_for_training(spec, recipe, places, options) as opened:
        ended: Literal["COMPLETE", "INTERRUPTED", "FAIL"] = "FAIL"
        try:
            with interruptible(), watch(study_start(opened)) as watcher:
                record = _train(opened, watcher, schedule_name, seed_lr or recipe.seed_lr)
            ended = "COMPLETE"
        except KeyboardInterrupt:
            ended = "INTERRUPTED"
            raise
        finally:
            opened.tracker.record(StudyFinished(state=ended))
            opened.tracker.close()
    if record.state == "failed":
        raise UserError(f"--schedule {schedule_name}: {record.reason}")
    return record


def _train(
    opened: OpenedStudy, watcher: Watcher, schedule_name: str, seed_lr: float
) -> BaselineRecord:
    """Train to the end and record it in the study and in the tracking."""
    workshop, study, tracker = opened.workshop, opened.study, opened.tracker
    recipe = workshop.recipe
    schedule = baseline_schedule(schedule_name, recipe, workshop.facts, seed_lr=seed_lr)
    key = f"baseline-{schedule_name}-{seed_lr:g}"
    plan = workshop.train_plan(schedule, log_key=key)
    curve: list[Evaluation] = []
    started = time.time()
    watched = f"valid_{recipe.watched}"

    def on_report(report: Report) -> Decision:
        metrics = dict(report.metrics)
        lr = metrics.pop("lr")
        tracker.record(TrialReported(key=key, step=report.step, lr=lr, metrics=metrics))
        curve.append(Evaluation(step=report.step, metrics=metrics))
        watcher.line(
            f"{schedule_name}: step {report.step}/{report.total_steps}, "
            f"{watched} {metrics[watched]:.4g}"
        )
        return Decision(stop=False)

    tracker.record(
        TrialStarted(
            key=key,
            name=f"{schedule_name} {seed_lr:g}",
            schedule=schedule_name,
            seed_lr=seed_lr,
            params=plan.model_dump(mode="json", include={"recipe", "schedule", "seed"}),
        )
    )
    watcher.line(f"{schedule_name}: seed LR {seed_lr:g}, {plan.total_steps} steps")
    try:
        outcome = workshop.runner.run(
            plan, on_report=on_report, on_line=watcher.line, on_progress=lambda step: None
        )
    except BaseException as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else repr(error)
        tracker.record(TrialFinished(key=key, state="FAIL", reason=reason))
        raise
    record = _record(outcome, recipe, schedule_name, plan, curve, started)
    figure = curves_figure(
        record,
        title=f"{schedule_name}: seed LR {seed_lr:g}",
        total_steps=plan.total_steps,
        lr=schedule.lr,
    )
    tracker.record(Attached(key=key, name="plots/curves.html", figure=figure))
    final = {f"final_{name}": value for name, value in record.metrics.items()}
    state = TOLD[record.state]
    tracker.record(TrialFinished(key=key, state=state, metrics=final, reason=record.reason))
    record_baseline(study, record)
    if record.state != "failed":  # a failed one goes on from its newest checkpoint
        discard_checkpoints(plan.checkpoint_dir)
    return record


def _record(
    outcome: Outcome,
    recipe: Recipe,
    schedule_name: str,
    plan: TrainPlan,
    curve: Sequence[Evaluation],
    started: float,
) -> BaselineRecord:
    common = BaselineRecord(
        schedule=schedule_name,
        seed_lr=plan.schedule.seed_lr,
        state="failed",
        curve=tuple(curve),
        steps_budget=plan.total_steps,
        started=started,
        seconds=time.time() - started,
        checkpoint=str(plan.checkpoint_dir),
        seed=plan.seed,
    )
    if isinstance(outcome, Failure):
        return common.model_copy(update={"reason": outcome.message})
    update: dict[str, Any] = {"steps_trained": outcome.steps_trained, "reason": outcome.reason}
    if outcome.state != "complete":
        return common.model_copy(update=update | {"state": "pruned"})
    metrics = outcome.result["metrics"]
    update |= {"state": "complete", "metrics": metrics}
    return common.model_copy(update=update | {"value": metrics[f"valid_{recipe.objective}"]})
