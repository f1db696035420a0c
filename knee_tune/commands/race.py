"""The race at the end of ``--total-runs`` and ``--total-steps``: which of the best points is best.

The rule is in ``stats/race.py``. Runs are those of a confirmation, so whatever was trained before
is answered from its record: a race that goes on begins at its first seed, and comes by all that it
had found.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from itertools import count

from knee_tune.commands.confirmation import candidates_at, default_point, fresh_run, keep
from knee_tune.commands.extra_runs import ExtraRun, train_extra_runs
from knee_tune.commands.opened import OpenedStudy
from knee_tune.config.study import FRESH_SEEDS
from knee_tune.plans.planner import in_order, trunk_of
from knee_tune.records.findings import Candidate
from knee_tune.records.study import StudyRecord
from knee_tune.records.values import RunRecord
from knee_tune.schedules import Exploring
from knee_tune.stats.estimates import judge
from knee_tune.stats.race import (
    CANDIDATES,
    SEARCH_SHARE,
    NextRun,
    affordable,
    leaders,
    standing,
    steps_to_train,
)
from knee_tune.study.attributes import all_extra_steps, extra_steps
from knee_tune.study.events import Watcher
from knee_tune.study.study import study_record


def steps_for_search(total: int) -> int:
    """After so many of ``total`` steps the search begins no trial more."""
    return int(SEARCH_SHARE * total)


def steps_trained(opened: OpenedStudy) -> int:
    """How many were trained for the study, whatever for, over all commands."""
    return study_record(opened.study).steps.trained + all_extra_steps(opened.study).trained


def race(
    opened: OpenedStudy, watcher: Watcher, *, total: int, timeout: float | None = None
) -> bool:
    """Train the candidates with one fresh seed after another; what was found is kept each time.

    It ends when one candidate is left, or another seed for two of them goes beyond ``total`` steps.
    After ``timeout`` seconds no run is begun, and False is returned if that ended it.
    """
    record = study_record(opened.study)
    if record.best is None:
        return True
    until = math.inf if timeout is None else time.monotonic() + timeout
    points = leaders(record)[:CANDIDATES]
    racing = candidates_at(points, record, default=default_point(opened))
    default = next(index for index, each in enumerate(racing) if each.default)
    watcher.line(f"racing: {'; '.join(each.setting for each in racing)}")
    for seed in count(opened.workers.spec.seed + FRESH_SEEDS):
        order = standing([_losses(each, record) for each in racing], default=default)
        runs = [fresh_run(opened, each, seed) for each in racing]
        left = total - steps_trained(opened)
        going = affordable([runs[index] for index in order], partial(_cost, opened), left)
        ended = "" if going else _why(len(order), of=len(racing), left=left, total=total)
        if any(each.runs for each in racing):
            verdict = judge(
                racing, metric=record.metric, direction=record.direction, race_ended=ended
            )
            verdict = keep(opened, record, verdict)
            if verdict.race is not None:
                watcher.line(verdict.race.words)
            if ended:
                watcher.line(verdict.words)
        if ended:
            watcher.line(f"the race is over: {ended}")
            return True
        told = _train(opened, watcher, going, until)
        if told is None:
            return False
        racing = [
            each.model_copy(update={"runs": (*each.runs, told[run.key])})
            if run.key in told
            else each
            for each, run in zip(racing, runs, strict=True)
        ]
    raise AssertionError("seeds have no end")


def _why(standing: int, *, of: int, left: int, total: int) -> str:
    """What ends a race ``of`` so many candidates."""
    if of < 2:
        return "there is one point only"
    if standing < 2:
        return "the others are behind" if standing else "no point was trained to its end"
    return f"another seed for two points does not fit into the {left:,} of {total:,} steps left"


def _train(
    opened: OpenedStudy, watcher: Watcher, runs: list[ExtraRun], until: float
) -> dict[str, RunRecord] | None:
    """How the runs of a seed ended, by their keys; None if there was no time for all of them."""
    runs = in_order(runs, slots=opened.workers.options.slots)
    timeout = None if until == math.inf else until - time.monotonic()
    ends = train_extra_runs(opened, watcher, runs, timeout=timeout)
    if len(ends) < len(runs):
        return None
    return {ended.run.key: ended.record for ended in ends}


def _losses(candidate: Candidate, record: StudyRecord) -> list[float]:
    """The lower the better; infinite where a run has no value."""
    sign = 1 if record.direction == "minimize" else -1
    return [math.inf if run.value is None else sign * run.value for run in candidate.runs]


def _cost(opened: OpenedStudy, runs: Sequence[ExtraRun]) -> int:
    """Steps that are left to train of them."""
    shares = opened.workers.options.trunk_cache > 0
    return steps_to_train(
        NextRun(
            trunk=trunk_of(run, alone=run.key) if shares else run.key,
            knee=run.schedule.knee_step if isinstance(run.schedule, Exploring) else 0,
            total=run.schedule.total_steps,
            reached=extra_steps(opened.study, run.key).reached,
        )
        for run in runs
    )
