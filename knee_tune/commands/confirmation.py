"""Fresh random seeds for the best points of a search: what ``--confirm K:S`` trains after it."""

from collections.abc import Sequence

from knee_tune.commands.extra_runs import ExtraRun, run_at, train_extra_runs
from knee_tune.commands.opened import OpenedStudy
from knee_tune.config.recipe import DEFAULT_DECAY, DEFAULT_EXPLORE_FRACTION
from knee_tune.records.events import Attached
from knee_tune.records.findings import Candidate, Confirmation
from knee_tune.records.shown import explored
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Point, point_of
from knee_tune.report.wording import told
from knee_tune.stats.estimates import judge
from knee_tune.study.attributes import record_confirmation
from knee_tune.study.events import Watcher
from knee_tune.study.study import study_record


def confirm_winner(opened: OpenedStudy, watcher: Watcher, *, timeout: float | None = None) -> bool:
    """Train the candidates with the fresh seeds that the study asks for, judge, and keep it.

    Numbers are of the validation split only. Runs that were trained before (an interrupted
    confirmation, one with fewer seeds) are answered from their records. After ``timeout`` seconds
    none is begun, and False is returned if any is left. There is nothing to do where the study
    asks for no confirmation, or has no complete trial.
    """
    confirm, record = opened.workers.spec.confirm, study_record(opened.study)
    if confirm is None or record.best is None:
        return True
    candidates = chosen(record, count=confirm.candidates, default=default_point(opened))
    trained = _train(opened, watcher, candidates, timeout=timeout)
    if trained is None:
        return False
    confirmation = judge(trained, metric=record.metric, direction=record.direction)
    watcher.line(keep(opened, record, confirmation).words)
    return True


def keep(opened: OpenedStudy, record: StudyRecord, confirmation: Confirmation) -> Confirmation:
    """The confirmation with its verdict in words, as it is kept with the study and in MLflow."""
    confirmation = told(confirmation).bounded(percent=record.in_percent(record.metric))
    record_confirmation(opened.study, confirmation)
    text = confirmation.model_dump_json(indent=2)
    opened.tracker.record(Attached(name="confirmation.json", text=text))
    return confirmation


def default_point(opened: OpenedStudy) -> Point:
    """The paper's default in the study's search space."""
    decay = DEFAULT_DECAY if opened.workers.spec.space.decays else None
    return point_of(opened.workers.recipe.seed_lr, DEFAULT_EXPLORE_FRACTION, decay)


def chosen(record: StudyRecord, *, count: int, default: Point) -> list[Candidate]:
    """The ``count`` best points of the search, best first, and the default point, each once."""
    best = list(dict.fromkeys(trial.point for trial in record.ranked))
    return candidates_at(best[:count], record, default=default)


def candidates_at(
    points: Sequence[Point], record: StudyRecord, *, default: Point
) -> list[Candidate]:
    """A candidate at each of ``points`` and at the default, with its best trial if it has one."""
    best: dict[Point, TrialRecord] = {}
    for trial in record.ranked:
        best.setdefault(trial.point, trial)
    return [
        Candidate(
            seed_lr=point[0],
            explore_fraction=point[1],
            decay=point[2] if len(point) == 3 else None,
            trial=best[point].number if point in best else None,
            default=point == default,
        )
        for point in dict.fromkeys([*points, default])
    ]


def _train(
    opened: OpenedStudy, watcher: Watcher, candidates: list[Candidate], *, timeout: float | None
) -> list[Candidate] | None:
    """The candidates with their runs, one for every fresh seed; None if there was no time."""
    seeds = opened.workers.spec.confirmation_seeds
    runs = [fresh_run(opened, candidate, seed) for candidate in candidates for seed in seeds]
    watcher.line(
        f"confirming: {len(runs)} runs, {len(candidates)} x {len(seeds)} (points x fresh seeds)"
    )
    trained = train_extra_runs(opened, watcher, runs, timeout=timeout)
    if len(trained) < len(runs):
        return None
    records = iter(ended.record for ended in trained)
    return [
        candidate.model_copy(update={"runs": tuple(next(records) for _ in seeds)})
        for candidate in candidates
    ]


def fresh_run(opened: OpenedStudy, candidate: Candidate, seed: int) -> ExtraRun:
    """The run of a candidate with a fresh seed."""
    seed_lr, fraction, decay = candidate.seed_lr, candidate.explore_fraction, candidate.decay
    return run_at(
        opened.workers,
        candidate,
        key=f"confirm-{seed_lr:g}-{fraction:g}-{f'{decay}-' if decay else ''}{seed}",
        name=f"confirm {seed_lr:g}, explore {explored(fraction, decay)}, seed {seed}",
        seed=seed,
        label="confirmation",
    )
