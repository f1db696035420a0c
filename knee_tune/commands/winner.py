"""What happens to finished trials: one is tested once and registered; any is replayed."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from knee_tune.commands.home import Places
from knee_tune.commands.opened import reopen_workers
from knee_tune.commands.workers import GroupOptions, Workers
from knee_tune.errors import MachineError, UserError
from knee_tune.plans.plan import SCRIPT, TrainPlan
from knee_tune.records.events import Alias, RegisteredModel, TrainedModel
from knee_tune.records.findings import Confirmed
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.study.storage import open_storage
from knee_tune.study.study import load_study, spec_of, study_record, trial_attrs
from knee_tune.tasks.registry import task_entry
from knee_tune.tracking import experiment_name, refuse_damaged
from knee_tune.tracking.registry import register
from knee_tune.workers.protocol import Callbacks, Decision, Report

TEST_PREFIX = "test:"
"""Study attributes that hold the test metrics of a trial: measured once, then read."""


def register_study(
    places: Places,
    name: str,
    *,
    number: int | None,
    on_line: Callable[[str], None],
    untried: Alias = "candidate",
    alias: Alias | None = None,
    workers: Workers | None = None,
) -> RegisteredModel:
    """Register a study's winner, or the trial of that number.

    A confirmed winner becomes champion, and what a confirmation did not confirm a candidate;
    ``untried`` is what a model becomes that no confirmation tried. ``alias`` overrules all of it.
    ``workers``: those that are open already, if any; else some are opened for the test split.
    UserError if the study or trial is unknown, not complete, or its weights are gone.
    """
    study = load_study(open_storage(places.storage_url), name)
    spec = spec_of(study)
    record = study_record(study)
    trial = complete_trial(record, number)
    if places.tracking_uri is None:
        raise UserError(
            "register: `tracking_uri` none has no model registry; name a server or file"
        )
    if spec.task != SCRIPT:
        task_entry(spec.task).check_serves()
    refuse_damaged(places.tracking_uri)  # before the test split is looked at
    attrs = trial_attrs(study, trial.number)
    weights = places.home.weights(attrs["weights"])
    if not weights.is_file() and workers is not None and workers.sharing is not None:
        inside = weights.relative_to(places.home.checkpoints).parts  # a driver elsewhere trained it
        workers.sharing.fetch_run(
            places.home.checkpoints / inside[0], on_line=on_line, on_life=lambda: None
        )
    if not weights.is_file():
        raise UserError(f"study {name}: the weights of trial {trial.number} are gone ({weights})")
    test, over = study.user_attrs.get(f"{TEST_PREFIX}{attrs['key']}"), ""
    if spec.task == SCRIPT:
        test = {}  # what a script measures it has measured
    if test is None:
        with ExitStack() as stack:
            if workers is None:
                trained = TrainPlan.model_validate(attrs["plan"]).placement
                opening = reopen_workers(places.home, study, GroupOptions(), amp=trained.amp)
                workers = stack.enter_context(opening)
            examples = workers.facts.examples.get("test", 0)
            test = workers.test(weights, key=attrs["key"]) if examples else {}
            over = f" ({examples:,} {workers.recipe.counted})"
        study.set_user_attr(f"{TEST_PREFIX}{attrs['key']}", test)
    shown = ", ".join(f"{metric} {value:.4g}" for metric, value in test.items())
    if shown:
        on_line(f"trial {trial.number} on the test split{over}: {shown}")
    elif spec.task != SCRIPT:
        on_line("the task has no test split, so nothing is tested")
    on_line(f"registering trial {trial.number} as knee-tune-{spec.subject}")
    confirmed = record.confirmed(trial)
    deserved: dict[Confirmed, Alias] = {"yes": "champion", "no": "candidate", "not tried": untried}
    return register(
        TrainedModel(
            study_uid=f"{name}-{study.user_attrs['key']}",
            study=name,
            task=spec.task,
            subject=spec.subject,
            recipe=spec.recipe,
            seed=spec.seed,
            data_dir=places.home.data,
            weights=weights,
            key=attrs["key"],
            number=trial.number,
            **trial.coordinates,
            data_fingerprint=study.user_attrs["data_fingerprint"],
            metrics={
                "valid": _bare(trial.kept_metrics, "valid"),
                **({"test": _bare(test, "test")} if test else {}),
            },
            serve=attrs.get("serve"),
            experiment=experiment_name(spec.subject),
            run_id=trial.run_id,
            alias=alias or deserved[confirmed],
            confirmed=confirmed,
        ),
        home=places.home.root,
        uri=places.tracking_uri,
    )


@dataclass(frozen=True, kw_only=True)
class Replay:
    """A trial's first replicate trained again from its recorded plan."""

    trial: TrialRecord
    metrics: dict[str, float]

    @property
    def same(self) -> bool:
        """Whether every final metric came out with the same bits."""
        return self.metrics == self.trial.kept_metrics


def replay(
    places: Places,
    name: str,
    *,
    number: int | None,
    on_report: Callable[[Report], None],
    on_line: Callable[[str], None],
) -> Replay:
    """Train a study's winner, or the trial of that number, once more; nothing is recorded.

    UserError if the study or trial is unknown or not complete; an error as of ``Workers.run`` if
    the training fails.
    """
    study = load_study(open_storage(places.storage_url), name)
    trial = complete_trial(study_record(study), number)
    folder = places.home.root.absolute() / "replays" / f"{name}-{trial.number:04d}"
    shutil.rmtree(folder, ignore_errors=True)
    recorded = TrainPlan.model_validate(trial_attrs(study, trial.number)["plan"])
    options = GroupOptions.as_placed(recorded.placement)

    def reported(report: Report) -> Decision:
        on_report(report)
        return Decision(stop=False)

    with reopen_workers(places.home, study, options) as workers:
        alone = study_record(study).model_copy(update={"trials": (trial,)})
        if other := alone.by_other_code(workers.facts.code):
            on_line(f"{other}: it may come out otherwise")
        folder.parent.mkdir(exist_ok=True)
        plan = workers.solitary_plan(recorded.schedule, log_key="replay", checkpoint_dir=folder)
        done = workers.run(plan, Callbacks(on_report=reported, on_line=on_line))
    if done.state != "complete":
        raise MachineError(f"replay of trial {trial.number}: {done.reason}")
    return Replay(trial=trial, metrics=done.result["metrics"])


def complete_trial(record: StudyRecord, number: int | None) -> TrialRecord:
    """The trial of that number, the winner's if None; UserError if it is none that is complete."""
    if number is not None:
        found = next((each for each in record.trials if each.number == number), None)
        if found is None:
            raise UserError(f"study {record.name}: it has no trial {number}")
        if found.state != "complete":
            raise UserError(
                f"study {record.name}: trial {number} is {found.state}; only complete trials have "
                "weights"
            )
        return found
    winner = record.winner
    if winner is None:
        raise UserError(f"study {record.name}: no trial is complete yet, so none has weights")
    if winner.trial is None:
        raise UserError(
            f"study {record.name}: the winner, {winner.setting}, was trained to its end by fresh "
            "seeds alone, so it is no complete trial; name one with `trial`"
        )
    return winner.trial


def _bare(metrics: dict[str, float], split: str) -> dict[str, float]:
    """``{"valid_ppl": 1.0}`` as ``{"ppl": 1.0}``; a script's may have any name."""
    return {name.removeprefix(f"{split}_"): value for name, value in metrics.items()}
