"""``knee-tune run --schedule NAME``: a schedule of the paper's baselines, outside the search."""

import shutil
import time

from knee_tune.app.home import Places
from knee_tune.app.opened import open_for_training
from knee_tune.app.request import StudyRequest
from knee_tune.app.run import Watch, interruptible, study_start
from knee_tune.app.workshop import GroupOptions
from knee_tune.distributed.protocol import Decision, Done, Report
from knee_tune.errors import UserError
from knee_tune.planning.planner import baseline_schedule
from knee_tune.reporting.curves import curves_figure
from knee_tune.specs.records import BaselineRecord, Evaluation
from knee_tune.specs.tracking import Attached, TrialFinished, TrialReported, TrialStarted
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
        workshop, study, tracker = opened.workshop, opened.study, opened.tracker
        lr = seed_lr or recipe.seed_lr
        schedule = baseline_schedule(schedule_name, recipe, workshop.facts, seed_lr=lr)
        key = f"baseline-{schedule_name}-{lr:g}"
        folder = places.home.checkpoints(study.study_name, study.user_attrs["key"]) / key
        shutil.rmtree(folder, ignore_errors=True)
        plan = workshop.train_plan(schedule, key=key, checkpoint_dir=folder)
        curve: list[Evaluation] = []
        started = time.time()
        try:
            with interruptible(), watch(study_start(opened)) as watcher:
                tracker.record(
                    TrialStarted(
                        key=key,
                        name=f"{schedule_name} {lr:g}",
                        schedule=schedule_name,
                        seed_lr=lr,
                        params=plan.model_dump(mode="json", include={"recipe", "schedule", "seed"}),
                    )
                )
                watcher.line(f"{schedule_name}: seed LR {lr:g}, {plan.total_steps} steps")

                def on_report(report: Report) -> Decision:
                    metrics = dict(report.metrics)
                    tracker.record(
                        TrialReported(
                            key=key, step=report.step, lr=metrics.pop("lr"), metrics=metrics
                        )
                    )
                    curve.append(Evaluation(step=report.step, metrics=metrics))
                    watched = f"valid_{recipe.watched}"
                    watcher.line(
                        f"{schedule_name}: step {report.step}/{report.total_steps}, "
                        f"{watched} {metrics[watched]:.4g}"
                    )
                    return Decision(stop=False)

                outcome = workshop.runner.run(
                    plan, on_report=on_report, on_line=watcher.line, on_progress=lambda step: None
                )
            failed = not isinstance(outcome, Done)
            reason = outcome.reason if isinstance(outcome, Done) else outcome.message
            final = outcome.result.get("metrics", {}) if isinstance(outcome, Done) else {}
            record = BaselineRecord(
                schedule=schedule_name,
                seed_lr=lr,
                state="complete" if final else "failed" if failed else "pruned",
                value=final.get(f"valid_{recipe.objective}"),
                metrics=final,
                curve=tuple(curve),
                steps_trained=outcome.steps_trained if isinstance(outcome, Done) else 0,
                steps_budget=plan.total_steps,
                reason=reason,
                started=started,
                seconds=time.time() - started,
                checkpoint=str(folder),
                seed=spec.seed,
            )
            figure = curves_figure(
                record,
                title=f"{schedule_name}: seed LR {lr:g}",
                total_steps=plan.total_steps,
                lr=schedule.lr,
            )
            tracker.record(Attached(key=key, name="plots/curves.html", figure=figure))
            tracker.record(
                TrialFinished(
                    key=key,
                    state="COMPLETE" if final else "FAIL" if failed else "PRUNED",
                    metrics={f"final_{name}": value for name, value in final.items()},
                    reason=reason,
                )
            )
            record_baseline(study, record)
        finally:
            tracker.close()
        if failed:
            raise UserError(f"--schedule {schedule_name}: {reason}")
        return record
