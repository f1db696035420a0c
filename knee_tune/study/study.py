"""One Optuna study as knee-tune keeps it: what is stored where, and what a trial's end means."""

import json
import math
import random
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from knee_tune.config.recipe import (
    DEFAULT_DECAY,
    DEFAULT_EXPLORE_FRACTION,
    BaseRecipe,
    task_slug,
)
from knee_tune.config.study import ResolvedStudy, StudySpec
from knee_tune.errors import UserError
from knee_tune.records.findings import Importances
from knee_tune.records.study import (
    BaselineRecord,
    EarlierStudy,
    StudyRecord,
    TrialRecord,
)
from knee_tune.records.values import Evaluation, RunEnd, RunState, StepCount
from knee_tune.study.attributes import (
    FUSED,
    known_audit,
    known_compared,
    known_confirmation,
    replicates_of,
    runs_of,
)
from knee_tune.study.collector import uncollected
from knee_tune.study.earlier import EARLIER, known_earlier, read_earlier
from knee_tune.study.pruners import locate
from knee_tune.study.recovery import KILLED, current, key_of
from knee_tune.study.storage import quiet_optuna
from knee_tune.tasks.registry import task_entry

Study = optuna.Study
"""What the rest of knee-tune passes around without importing Optuna."""

MAKER_PATIENCE = 10.0
"""Seconds for another driver to note the settings of a study it has just made."""

FIXED_FIELDS = (
    *("task", "recipe", "seed", "nproc", "replicates", "fuse"),
    *("scale", "compare", "analyses", "trunk"),
)
"""What may not change while a study lives: its trials would no longer be comparable."""

LONGEST_DIFFERENCE = 120
"""Characters of two values that one line has room for; a table's rows are longer."""

CODE = "code"
"""Trial attribute with the fingerprint of the code that trained it; earlier versions noted none."""

BASELINE_PREFIX = "baseline:"
"""Study attributes that hold the runs of other schedules."""

TOLD: Mapping[RunEnd, TrialState] = {
    RunEnd.COMPLETE: TrialState.COMPLETE,
    RunEnd.PRUNED: TrialState.PRUNED,
    RunEnd.DIVERGED: TrialState.PRUNED,
    RunEnd.FAILED: TrialState.FAIL,
}
"""Each end of a trial's last run as Optuna is told it."""

_STATES: Mapping[TrialState, RunState] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def open_study(
    storage: BaseStorage,
    spec: ResolvedStudy[BaseRecipe],
    *,
    data_fingerprint: str,
    amp: bool = False,
    beside: bool = False,
) -> optuna.Study:
    """The study of that name, made on first use with the paper's default as its first trial.

    A grid has no such trial: it is exactly the search space's. ``amp``: whether it is trained in
    bf16. ``beside``: a study that is there keeps its search as it was asked for, see ``spec``.

    UserError if a study of that name was made with another of the fields of ``FIXED_FIELDS``, other
    data or other arithmetic, or cannot start from what it is to start from.
    """
    earlier = _earlier_of(storage, spec)
    with quiet_optuna():
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=spec.name,
                direction=spec.typed_recipe.objective_metric.direction,
            )
        except DuplicatedStudyError:
            study = optuna.load_study(study_name=spec.name, storage=storage)
            _await_maker(study)
        unknown = set[str]()
        if "spec" in study.user_attrs:
            if "fuse" not in study.user_attrs["spec"]:
                unknown, spec = {"fuse"}, spec.model_copy(update={"fuse": False})
            # It goes on as it began.
            before = spec_of(study)
            spec = spec.model_copy(
                update={"start": before.start, "pruner": spec.pruner or before.pruner}
            )
            began = before.from_study
            if spec.from_study not in (None, began):
                raise UserError(
                    f"study {spec.name}: it was made with from_study={json.dumps(began)}, not "
                    f"{json.dumps(spec.from_study)}; choose another `study_name`"
                )
            spec = spec.model_copy(update={"from_study": began})
            # Its runs are in the experiment that was named when it was made.
            spec = spec.model_copy(update={"own_data": before.own_data})
            _refuse_changes(before, spec)
            _refuse_other_data(study, data_fingerprint)
            _refuse_other_arithmetic(study, amp=amp)
            if beside:
                return study
        else:
            spec = spec.model_copy(update={"pruner": spec.acting_pruner})
            if earlier is not None:
                study.set_user_attr(EARLIER, earlier.model_dump(mode="json"))
            _note_settings(study, spec, data_fingerprint)
        study.set_user_attr("amp", amp)
        study.set_user_attr("spec", spec.model_dump(mode="json", exclude=unknown))
        return study


def _earlier_of(storage: BaseStorage, spec: ResolvedStudy[BaseRecipe]) -> EarlierStudy | None:
    """What a study that is yet to be made starts from."""
    known = study_names(storage)
    if spec.from_study is None or (spec.name in known and spec.name != spec.from_study):
        return None
    if spec.name == spec.from_study:
        raise UserError(f"`from_study` {spec.name}: that is this study; choose a `study_name`")
    earlier = load_study(storage, spec.from_study)
    return read_earlier(earlier, spec_of(earlier), spec=spec)


def _note_settings(
    study: optuna.Study, spec: ResolvedStudy[BaseRecipe], data_fingerprint: str
) -> None:
    recipe = spec.typed_recipe
    study.set_user_attr("key", uuid.uuid4().hex[:8])
    study.set_user_attr("data_fingerprint", data_fingerprint)
    study.set_user_attr("metric", recipe.objective_metric.name)
    study.set_user_attr("watched", recipe.watched_metric.name)
    study.set_user_attr("reported_sign", reported_sign(recipe))
    study.set_user_attr("percent", [*recipe.percents])
    study.set_user_attr("measures", recipe.measures)
    study.set_user_attr("counted", recipe.counted)
    study.set_metric_names([recipe.objective_metric.name])
    if spec.tries_default:
        default: dict[str, Any] = {
            "seed_lr": recipe.seed_lr,
            "explore_fraction": DEFAULT_EXPLORE_FRACTION,
        }
        if spec.space.decays:
            default["decay"] = DEFAULT_DECAY
        study.enqueue_trial(default, skip_if_exists=True)


def _await_maker(study: optuna.Study) -> None:
    """Wait for the driver that made the study, started together with us, to note its settings.

    If that was killed in between, one that waited in vain does it.
    """
    deadline = time.monotonic() + MAKER_PATIENCE
    while "spec" not in study.user_attrs and time.monotonic() < deadline:
        time.sleep(0.1)


def reported_sign(recipe: BaseRecipe) -> int:
    """-1 where the watched metric improves in the other direction than the objective.

    Optuna's pruners compare what is reported in the study's own direction, so a study of BLEU is
    told the negative perplexity.
    """
    return 1 if recipe.objective_metric.direction == recipe.watched_metric.direction else -1


def load_study(storage: BaseStorage, name: str) -> optuna.Study:
    """An existing study; UserError naming the studies there are if it does not exist."""
    with quiet_optuna():
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            known = ", ".join(sorted(study_names(storage))) or "none yet"
            raise UserError(f"study {name}: not in this storage; there are: {known}") from None


def study_names(storage: BaseStorage) -> list[str]:
    """Every study in the storage, in the order of their making."""
    return [study.study_name for study in storage.get_all_studies()]


def spec_of(study: optuna.Study) -> StudySpec:
    """The specification the study was last run with; UserError for a study not made by us.

    One that was made before replicates could be fused goes on without, one that was made before
    there was a bracket began with random points, and one that notes no pruner had ``knee`` unless
    its goal was the ridge.
    """
    if "spec" not in study.user_attrs:
        raise UserError(f"study {study.study_name}: it was not made by knee-tune")
    spec = StudySpec.model_validate({"fuse": False, "start": "random"} | study.user_attrs["spec"])
    if spec.pruner is None and spec.compare is None and spec.goal != "ridge":
        return spec.model_copy(update={"pruner": "knee"})
    return spec


@uncollected()
def study_record(study: optuna.Study) -> StudyRecord:
    """The study and its trials as reports read them; a continued trial appears once."""
    spec, attrs = spec_of(study), study.user_attrs
    percent = _in_percent(spec, attrs)
    confirmation = known_confirmation(study)
    if confirmation is not None:
        of_percent = attrs["metric"].partition("_")[2] in percent
        confirmation = confirmation.bounded(percent=of_percent)
    return StudyRecord(
        name=study.study_name,
        task=task_slug(spec.task),
        metric=attrs["metric"],
        direction="minimize" if study.direction == StudyDirection.MINIMIZE else "maximize",
        trials=tuple(
            _trial_record(trial, attrs)
            for trial in current(study.get_trials(deepcopy=False))
            if trial.params.keys() >= {*spec.parameters}
        ),
        spec=spec,
        baselines=tuple(
            BaselineRecord.model_validate({"seed": spec.seed} | value)
            for name, value in attrs.items()
            if name.startswith(BASELINE_PREFIX)
        ),
        compared=known_compared(study),
        confirmation=confirmation,
        earlier=known_earlier(study),
        audit=known_audit(study),
        percent=percent,
        measures=attrs.get("measures", {}),
    )


def _in_percent(spec: StudySpec, attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics in percent; studies of earlier versions do not say, but their tasks do."""
    if "percent" in attrs:
        return tuple(attrs["percent"])
    try:
        metrics = task_entry(spec.task).recipe_type().metrics
    except UserError:  # a task that this machine does not have
        return ()
    return tuple(each.name for each in metrics if each.percent)


def trial_record(study: optuna.Study, trial: FrozenTrial) -> TrialRecord:
    """A trial as reports read it."""
    return _trial_record(trial, study.user_attrs)


def trial_attrs(study: optuna.Study, number: int) -> Mapping[str, Any]:
    """Notes of a trial; to be read only, for a copy of a large study takes seconds."""
    return study.get_trials(deepcopy=False)[number].user_attrs


def record_baseline(study: optuna.Study, record: BaselineRecord) -> None:
    """Keep a run of another schedule with the study, one per schedule and seed LR."""
    name = f"{BASELINE_PREFIX}{record.schedule}:{record.seed_lr:g}"
    study.set_user_attr(name, record.model_dump(mode="json"))


def _trial_record(trial: FrozenTrial, study_attrs: Mapping[str, Any]) -> TrialRecord:
    attrs = trial.user_attrs
    plan, replicates = attrs.get("plan"), replicates_of(attrs)
    total_steps = plan["schedule"]["total_steps"] if plan else 0
    behind_each_other = 1 if FUSED in attrs else runs_of(attrs)
    driver = attrs.get("driver", {})
    started, ended = trial.datetime_start, trial.datetime_complete
    state = _STATES[trial.state]
    silent_death = KILLED if state == "failed" else ""  # Optuna takes no reason for a stale trial
    return TrialRecord(
        key=key_of(trial),
        code=attrs.get(CODE, ""),
        number=trial.number,
        seed_lr=trial.params["seed_lr"],
        explore_fraction=trial.params["explore_fraction"],
        decay=trial.params.get("decay"),
        driver=f"{driver['host']} {driver['pid']}" if driver else "",
        progress=(trial.last_step or 0) / (behind_each_other * total_steps) if total_steps else 0,
        state=state,
        value=trial.value if state == "complete" else None,
        metrics=attrs.get("metrics", {}),
        spread=attrs.get("spread"),
        curve=_curve(trial, study_attrs, total_steps),
        steps=StepCount(trained=attrs.get("steps_trained", 0), reused=attrs.get("steps_reused", 0)),
        steps_recorded=attrs.get("steps_recorded", 0),
        steps_pruned=attrs.get("steps_pruned", 0),
        budget=runs_of(attrs) * total_steps,
        reason=attrs.get("reason") or silent_death,
        started=started.timestamp() if started else None,
        seconds=(ended - started).total_seconds() if started and ended else None,
        run_id=attrs.get("mlflow_run_id"),
        run_url=attrs.get("mlflow_run_url"),
        checkpoint=attrs.get("checkpoint"),
        seed=plan["seed"] if plan else study_attrs["spec"]["seed"],
        replicates=replicates,
    )


def _curve(
    trial: FrozenTrial, study_attrs: Mapping[str, Any], total_steps: int
) -> tuple[Evaluation, ...]:
    """Learning curve: at every step the mean that the last replicate to reach it reported.

    NaN stands where only other code has reported.
    """
    watched, sign = study_attrs["watched"], study_attrs["reported_sign"]
    means: dict[int, float] = {}
    for reported, mean in sorted(trial.intermediate_values.items()):
        if math.isnan(mean):
            continue
        _, step = locate(reported, total_steps=total_steps) if total_steps else (0, reported)
        means[step] = sign * mean
    # In one go: ten thousand trials have hundreds of thousands of evaluations.
    return _CURVE.validate_python(
        [{"step": step, "metrics": {watched: mean}} for step, mean in sorted(means.items())]
    )


_CURVE = TypeAdapter(tuple[Evaluation, ...])


def _refuse_changes(old: StudySpec, new: StudySpec) -> None:
    before, after = (
        each.model_dump(mode="json") | {"task": task_slug(each.task)}  # its file may be moved
        for each in (old, new)
    )
    fixed = [(field, before.get(field), after.get(field)) for field in FIXED_FIELDS]
    # Optuna keeps the choices of a category for good.
    fixed.append(("space.decay", before["space"].get("decay"), after["space"].get("decay")))
    for field, old_value, new_value in fixed:
        for path, was, now in _differences(field, old_value, new_value):
            if path in ("recipe.script", "trunk.path"):  # moved: what is in it counts
                continue
            differs = f"{path}={json.dumps(was)}, not {json.dumps(now)}"
            if len(differs) > LONGEST_DIFFERENCE:
                differs = f"other {path}"
            raise UserError(
                f"study {new.name}: it was made with {differs}; choose another `study_name`"
            )


def _refuse_other_data(study: optuna.Study, fingerprint: str) -> None:
    known = study.user_attrs["data_fingerprint"]
    if known != fingerprint:
        raise UserError(
            f"study {study.study_name}: its trials were trained on other data (fingerprint "
            f"{known[:12]}, now {fingerprint[:12]}); choose another `study_name`"
        )


def _refuse_other_arithmetic(study: optuna.Study, *, amp: bool) -> None:
    before = study.user_attrs.get("amp", amp)  # which studies of earlier versions do not say
    if amp == before:
        return
    way, trained, now = (
        ("leave `amp=False` out, on a machine with a GPU", "bf16", "float32")
        if before
        else ("add `amp=False`", "float32", "bf16")
    )
    raise UserError(
        f"study {study.study_name}: its trials were trained in {trained}, these would be in {now}; "
        f"{way}, or choose another `study_name`"
    )


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


FEWEST_TRIALS = 4
"""A forest grown on fewer points says nothing."""

MOST_TRIALS = 250
"""A forest takes seconds for so many, and minutes for thousands: it grows with their square."""


def importances_of(study: optuna.Study, *, seed: int) -> Importances | None:
    """Importances by fANOVA; None unless hyperparameters and values of enough trials vary.

    fANOVA, because its share is of the variance over the whole search space, which is what the
    heat map shows. Of more than ``MOST_TRIALS`` it takes as many, drawn by lot.
    Optuna's default, PED-ANOVA, asks what sets the best trials apart, and on few points it changes
    with every trial; its numbers are told too, for Optuna Dashboard shows them.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST_TRIALS:
        return None
    first = complete[0]
    varied = (
        {trial.value for trial in complete},
        *({trial.params[name] for trial in complete} for name in first.params),
    )
    if any(len(values) < 2 for values in varied):
        return None
    from optuna.importance import (  # slow
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )

    chosen = random.Random(seed).sample(complete, min(len(complete), MOST_TRIALS))
    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1

    def target(trial: FrozenTrial) -> float:  # as the dashboard calls it
        assert trial.value is not None, "it is complete"
        return sign * trial.value

    with quiet_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of targets that are to be small, which this one is
        values = get_param_importances(
            _of(chosen, study), evaluator=FanovaImportanceEvaluator(seed=seed)
        )
        theirs = get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target=target
        )
    return Importances(
        evaluator="fANOVA",
        measures=(
            "the part of the metric's variance over the search space that the hyperparameter "
            "explains alone, scaled so that the shares add up to 100%"
        ),
        values={name: float(value) for name, value in values.items()},
        dashboard={name: float(value) for name, value in theirs.items()},
        trials=len(chosen),
    )


def _of(trials: Sequence[FrozenTrial], study: optuna.Study) -> optuna.Study:
    """A study in memory of these trials alone, without their notes: Optuna copies all of them."""
    part = optuna.create_study(direction=study.direction)
    part.add_trials(
        [
            optuna.create_trial(
                params=trial.params, distributions=trial.distributions, value=trial.value
            )
            for trial in trials
        ]
    )
    return part
