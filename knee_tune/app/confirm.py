"""``--confirm K:S``: the best trials and the paper's default once more, with fresh seeds."""

from knee_tune.app.extra_runs import ExtraRun, train_extra_runs
from knee_tune.app.opened import OpenedStudy
from knee_tune.planning.planner import knee_schedule
from knee_tune.reporting.verdict import judge
from knee_tune.runs.locks import file_lock, held_once
from knee_tune.specs.confirmation import Candidate, Confirmation, FreshRun
from knee_tune.specs.records import RunRecord, StudyRecord, TrialRecord
from knee_tune.specs.space import DEFAULT_EXPLORE_FRACTION
from knee_tune.tuning.attributes import record_confirmation
from knee_tune.tuning.listeners import Watcher
from knee_tune.tuning.study import study_record


def confirm_winner(opened: OpenedStudy, watcher: Watcher) -> Confirmation | None:
    """Train the candidates with the fresh seeds that the study asks for, judge, and keep it.

    Numbers are of the validation split only. Runs that were trained before (an interrupted
    confirmation, one with fewer seeds) are answered from their records. None if the study asks for
    no confirmation, or has no complete trial.
    """
    study, spec = opened.study, opened.workshop.spec
    if spec.confirm is None or study_record(study).best is None:
        return None
    lock = file_lock(opened.places.home.root / f"confirm-{spec.name}.lock")
    with held_once(lock, unless=lambda: False, meanwhile=lambda: None):  # two drivers, one study
        confirmation = _confirmation(opened, watcher, study_record(study))
        record_confirmation(study, confirmation)
    watcher.line(confirmation.words)
    return confirmation


def chosen(record: StudyRecord, *, count: int, default: tuple[float, float]) -> list[Candidate]:
    """The ``count`` best points of the search, best first, and the default point, each once."""
    best: dict[tuple[float, float], TrialRecord] = {}
    for trial in record.ranked:
        best.setdefault(trial.point, trial)
    points = list(dict.fromkeys([*list(best)[:count], default]))
    return [
        Candidate(
            seed_lr=seed_lr,
            explore_fraction=fraction,
            trial=best[seed_lr, fraction].number if (seed_lr, fraction) in best else None,
            default=(seed_lr, fraction) == default,
        )
        for seed_lr, fraction in points
    ]


def _confirmation(opened: OpenedStudy, watcher: Watcher, record: StudyRecord) -> Confirmation:
    spec, recipe = opened.workshop.spec, opened.workshop.recipe
    assert spec.confirm is not None, "confirm_winner has seen to it"
    candidates = chosen(
        record,
        count=spec.confirm.candidates,
        default=(recipe.seed_lr, DEFAULT_EXPLORE_FRACTION),
    )
    seeds = spec.confirmation_seeds
    runs = [_fresh_run(opened, candidate, seed) for candidate in candidates for seed in seeds]
    watcher.line(
        f"confirming: {len(runs)} runs, {len(candidates)} x {len(seeds)} (points x fresh seeds)"
    )
    records = iter(train_extra_runs(opened, watcher, runs))
    trained = [
        candidate.model_copy(update={"runs": tuple(_told(next(records), seed) for seed in seeds)})
        for candidate in candidates
    ]
    return judge(trained, metric=record.metric, direction=record.direction)


def _fresh_run(opened: OpenedStudy, candidate: Candidate, seed: int) -> ExtraRun:
    seed_lr, fraction = candidate.point
    return ExtraRun(
        key=f"confirm-{seed_lr:g}-{fraction:g}-{seed}",
        name=f"confirm {seed_lr:g}, explore {fraction:.0%}, seed {seed}",
        schedule=knee_schedule(
            opened.workshop.recipe,
            opened.workshop.facts,
            seed_lr=seed_lr,
            explore_fraction=fraction,
        ),
        seed=seed,
        label="confirmation",
        explore_fraction=fraction,
    )


def _told(record: RunRecord, seed: int) -> FreshRun:
    return FreshRun(seed=seed, value=record.value, reason=record.reason)
