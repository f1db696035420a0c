"""An earlier study of the same task that a search starts from (``--from``).

What it found is copied when the later study is made, so that what that one proposes depends on its
own trials and nothing else: the earlier one may go on, or go away.
"""

from pathlib import PurePath

import optuna
from optuna.trial import FrozenTrial, TrialState

from knee_tune.config.recipe import DEFAULT_DECAY, BaseRecipe, task_slug
from knee_tune.config.study import ResolvedStudy, StudySpec
from knee_tune.errors import UserError
from knee_tune.records.study import EarlierPoint, EarlierStudy
from knee_tune.study.samplers import axes_of
from knee_tune.study.told import told_of

EARLIER = "earlier"
"""Study attribute with what was copied."""

MOST_EARLIER = 50
"""Trials that are copied: as many as a search of a night has, and 3 kB."""


def read_earlier(
    study: optuna.Study, before: StudySpec, *, spec: ResolvedStudy[BaseRecipe]
) -> EarlierStudy:
    """What ``study``, made as ``before`` says, knows of the search space of ``spec``.

    UserError where that is nothing, or of another matter.
    """
    objective = spec.typed_recipe.objective_metric
    refused = f"`from_study` {study.study_name}: "
    if before.compare is not None:
        raise UserError(f"{refused}it compares schedules and searches nothing")
    if task_slug(before.task) != task_slug(spec.task) or _script(before) != _script(spec):
        raise UserError(
            f"{refused}it is of {_script(before) or task_slug(before.task)}, this one of "
            f"{_script(spec) or task_slug(spec.task)}"
        )
    if (metric := study.user_attrs["metric"]) != objective.name:
        raise UserError(f"{refused}its metric is {metric}, this one's {objective.name}")
    trials = study.get_trials(deepcopy=False)
    if not any(each.state == TrialState.COMPLETE for each in trials):
        raise UserError(f"{refused}it has no complete trial yet")
    space = {name: axis.distribution() for name, axis in axes_of(spec).items()}
    within = [
        trial
        for each in trials
        if (trial := _in_space(each, spec, decay=before.recipe.get("decay", DEFAULT_DECAY)))
    ]
    told = told_of(within, space, direction=study.direction, most=MOST_EARLIER)
    complete = [each for each in within if each.state == TrialState.COMPLETE]
    if not complete:
        raise UserError(f"{refused}none of its complete trials lies in this search space")
    minimize = objective.direction == "minimize"
    best = (min if minimize else max)(complete, key=lambda each: each.values[0])
    return EarlierStudy(
        study=study.study_name,
        seed_lr=best.params["seed_lr"],
        points=tuple(
            EarlierPoint(params=each.params, value=each.value)
            for each in told
            if each.value is not None
        ),
    )


def known_earlier(study: optuna.Study) -> EarlierStudy | None:
    """What a study keeps of the one that it starts from, if it does."""
    kept = study.user_attrs.get(EARLIER)
    return None if kept is None else EarlierStudy.model_validate(kept)


def _script(spec: StudySpec) -> str:
    """The name of the file, which may be moved; empty of a task."""
    return PurePath(spec.recipe.get("script", "")).name


def _in_space(trial: FrozenTrial, spec: StudySpec, *, decay: str) -> FrozenTrial | None:
    """The trial with the parameters that ``spec`` searches; None if it lies elsewhere.

    ``decay``: that of all trials of a study which does not search it.
    """
    at = {"decay": decay, **trial.params}
    axes = axes_of(spec)
    fits = at["decay"] == spec.recipe.get("decay", DEFAULT_DECAY) or "decay" in axes
    if not fits or not at.keys() >= axes.keys():
        return None
    for name, axis in axes.items():
        space = axis.distribution()
        if name == "decay" and at[name] not in axis.points:
            return None
        if name != "decay" and not space._contains(space.to_internal_repr(at[name])):
            return None
    found = optuna.create_trial(
        state=trial.state if trial.state.is_finished() else TrialState.FAIL,
        params={name: at[name] for name in axes},
        distributions={name: axis.distribution() for name, axis in axes.items()},
        value=trial.value if trial.state == TrialState.COMPLETE else None,
    )
    found.number = trial.number
    return found
