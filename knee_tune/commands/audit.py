"""``knee-tune audit``: pruned trials are trained to their end, to see what pruning threw away."""

from collections.abc import Sequence
from dataclasses import replace

from knee_tune.commands.extra_runs import ExtraRun, Lines, run_at, train_extra_runs
from knee_tune.commands.home import Places
from knee_tune.commands.opened import OpenedStudy, open_for_training, resolved, told_end
from knee_tune.commands.workers import GroupOptions
from knee_tune.errors import UserError
from knee_tune.plans.plan import TrainPlan
from knee_tune.records.events import StudyFinished
from knee_tune.records.findings import AuditedTrial, choose
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import StepCount
from knee_tune.study.attributes import record_audit
from knee_tune.study.storage import open_storage, refuse_missing
from knee_tune.study.study import load_study, spec_of, study_record, trial_attrs


def audit_study(
    places: Places,
    name: str,
    watcher: Lines,
    *,
    finish: int,
    seed: int = 1,
    slots: int = 1,
    trunk_cache: int = GroupOptions.trunk_cache,
    shared: str | None = None,
    shared_limit: int | None = None,
) -> StudyRecord:
    """Finish some pruned trials of a study and keep what they come to with it.

    ``finish``: trials that are to be audited in the end, those of earlier audits counted; ``seed``:
    of the choice among the pruned ones.

    They go on from where pruning stopped them (those whose replicates trained as one batched model
    start anew, each on its own), with every random seed of the study, on the kind of
    device that they were trained on. The trials themselves stay as they are. UserError if the study
    is unknown, has no complete or no pruned trial, or a run cannot be trained; KeyboardInterrupt is
    raised on, and the same call continues.
    """
    refuse_missing(places.storage_url)
    study = load_study(open_storage(places.storage_url), name)
    record = study_record(study)
    numbers = chosen(record, finish=finish, seed=seed)
    if not numbers:
        watcher.line(f"{name}: {len(record.audit.trials)} pruned trials were audited before")
        return record
    # On the devices that a trial had: elsewhere its checkpoints are another run's.
    before = TrainPlan.model_validate(trial_attrs(study, numbers[0])["plan"]).placement
    options = replace(
        GroupOptions.as_placed(before),
        slots=slots,
        trunk_cache=trunk_cache,
        shared=shared,
        shared_limit=shared_limit,
    )
    with open_for_training(resolved(spec_of(study)), places, options) as opened:
        if others := record.by_other_code(opened.workers.facts.code):
            watcher.line(f"{others}: the audit compares with them")
        with told_end(
            opened.tracker,
            uri=places.tracking_uri,
            finished=lambda _: _finished(study_record(opened.study)),
            on_line=watcher.line,
        ):
            _finish(opened, watcher, [trial for trial in record.trials if trial.number in numbers])
        return study_record(opened.study)


def chosen(record: StudyRecord, *, finish: int, seed: int) -> list[int]:
    """The numbers of the trials to finish now; UserError if there is nothing to audit."""
    if record.best is None:
        raise UserError(
            f"study {record.name}: no trial is complete yet, so there is nothing to compare with"
        )
    candidates = [trial.number for trial in record.pruned_trials]
    if not candidates:
        pruner = record.spec.acting_pruner
        raise UserError(
            f"study {record.name}: no trial was pruned (pruner {pruner}; diverged ones do not "
            "count), so there is nothing to audit"
        )
    audited = [trial.number for trial in record.audit.trials]
    return choose(candidates, audited=audited, finish=finish, seed=seed)


def _finish(opened: OpenedStudy, watcher: Lines, trials: Sequence[TrialRecord]) -> None:
    """Train every replicate of ``trials`` to its end, and keep what came out."""
    seeds = opened.workers.spec.replicate_seeds
    runs = [_run(opened, trial, seed) for trial in trials for seed in seeds]
    shown = ", ".join(str(trial.number) for trial in trials)
    watcher.line(f"finishing pruned trials {shown}: {len(runs)} runs")
    ends = iter(train_extra_runs(opened, watcher, runs))
    for trial in trials:
        ended = [next(ends) for _ in seeds]
        for failed in (each for each in ended if each.failure is not None):
            raise failed.error(
                f"study {opened.study.study_name}: trial {trial.number}: {failed.record.reason}; "
                "the same command goes on from here"
            )
        finished = [each.record for each in ended]
        steps = StepCount(
            trained=sum(record.steps.trained for record in finished),
            reused=sum(record.steps.reused for record in finished),
        )
        values = tuple(record.value for record in finished)
        audited = AuditedTrial(number=trial.number, values=values, steps=steps)
        record_audit(opened.study, audited)


def _run(opened: OpenedStudy, trial: TrialRecord, seed: int) -> ExtraRun:
    return run_at(
        opened.workers,
        trial,
        key=f"audit-{trial.number}-{seed}",
        name=f"audit of trial {trial.number}, seed {seed}",
        seed=seed,
        label="audit",
    )


def _finished(record: StudyRecord) -> StudyFinished:
    """What the study's MLflow run learns of it; its search was over before, however this ended."""
    report = record.audit_report
    if report is None:
        return StudyFinished()
    return StudyFinished(
        metrics={
            "audit_wrong_prunes": report.wrong.share,
            "audited_trials": float(report.wrong.of),
            "audit_steps_trained": float(report.steps_trained),
        }
    )
