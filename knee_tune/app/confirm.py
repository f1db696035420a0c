"""``--confirm K:S``: the best trials and the paper's default once more, with fresh seeds."""

from knee_tune.app.extra_runs import ExtraRun, train_extra_runs
from knee_tune.app.opened import OpenedStudy
from knee_tune.planning.planner import knee_schedule
from knee_tune.reporting.verdict import judge
from knee_tune.specs.confirmation import Candidate, FreshRun
from knee_tune.specs.records import RunRecord, StudyRecord, TrialRecord
from knee_tune.specs.shown import percent
from knee_tune.specs.space import DEFAULT_EXPLORE_FRACTION
from knee_tune.specs.steps import StepCount
from knee_tune.specs.tracking import Attached
from knee_tune.tuning.attributes import record_confirmation
from knee_tune.tuning.listeners import Watcher
from knee_tune.tuning.study import study_record


def confirm_winner(opened: OpenedStudy, watcher: Watcher, *, timeout: float | None = None) -> bool:
    """Train the candidates with the fresh seeds that the study asks for, judge, and keep it.

    Numbers are of the validation split only. Runs that were trained before (an interrupted
    confirmation, one with fewer seeds) are answered from their records. After ``timeout`` seconds
    none is begun, and False is returned if any is left. There is nothing to do where the study
    asks for no confirmation, or has no complete trial.
    """
    confirm, record = opened.workshop.spec.confirm, study_record(opened.study)
    if confirm is None or record.best is None:
        return True
    recipe = opened.workshop.recipe
    default = (recipe.seed_lr, DEFAULT_EXPLORE_FRACTION)
    candidates = chosen(record, count=confirm.candidates, default=default)
    trained = _train(opened, watcher, candidates, timeout=timeout)
    if trained is None:
        return False
    confirmation = judge(trained, metric=record.metric, direction=record.direction)
    confirmation = confirmation.bounded(percent=record.in_percent(record.metric))
    record_confirmation(opened.study, confirmation)
    text = confirmation.model_dump_json(indent=2)
    opened.tracker.record(Attached(name="confirmation.json", text=text))
    watcher.line(confirmation.words)
    return True


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


def _train(
    opened: OpenedStudy, watcher: Watcher, candidates: list[Candidate], *, timeout: float | None
) -> list[Candidate] | None:
    """The candidates with their runs, one for every fresh seed; None if there was no time."""
    seeds = opened.workshop.spec.confirmation_seeds
    runs = [_fresh_run(opened, candidate, seed) for candidate in candidates for seed in seeds]
    watcher.line(
        f"confirming: {len(runs)} runs, {len(candidates)} x {len(seeds)} (points x fresh seeds)"
    )
    trained = train_extra_runs(opened, watcher, runs, timeout=timeout)
    if len(trained) < len(runs):
        return None
    records = iter(ended.record for ended in trained)
    return [
        candidate.model_copy(update={"runs": tuple(_told(next(records), seed) for seed in seeds)})
        for candidate in candidates
    ]


def _fresh_run(opened: OpenedStudy, candidate: Candidate, seed: int) -> ExtraRun:
    seed_lr, fraction = candidate.point
    return ExtraRun(
        key=f"confirm-{seed_lr:g}-{fraction:g}-{seed}",
        name=f"confirm {seed_lr:g}, explore {percent(fraction)}, seed {seed}",
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
    steps = StepCount(trained=record.steps_trained, reused=record.steps_reused)
    return FreshRun(
        seed=seed,
        value=record.value,
        reason=record.reason,
        failed=record.state == "failed",
        steps=steps,
    )
