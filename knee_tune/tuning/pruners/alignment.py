"""Where runs of different Knee schedules can be compared, and when one of them is worse.

At the same step one run still explores while another already decays, and a decaying run always
looks better. So the decays are laid over each other, by LR or by their progress. No Optuna here.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from knee_tune.schedules import Knee


def locate(reported: int, *, total_steps: int) -> tuple[int, int]:
    """Replicate (from 0) and step within it of what was reported at step ``reported``.

    Replicates lie behind each other: replicate r at step t is reported at r * total_steps + t,
    t = 1..total_steps.
    """
    replicate = max(0, reported - 1) // total_steps
    return replicate, reported - replicate * total_steps


def decay_progress(schedule: Knee, step: int) -> float:
    """The share of its decay that a run has behind it: 0 at the knee, 1 at the last step.

    For steps from the knee on, of a schedule that does decay.
    """
    knee = schedule.knee_step
    return (step - knee) / (schedule.total_steps - knee)


def step_at_progress(schedule: Knee, progress: float) -> float | None:
    """The step at which the decay has come this far (0..1); None without a decay."""
    decay_steps = schedule.total_steps - schedule.knee_step
    if decay_steps == 0:
        return None
    return _whole(schedule.knee_step + progress * decay_steps)


def step_at_lr(schedule: Knee, lr: float) -> float | None:
    """The step at which the decay has come down to this LR; None if it never does.

    The knee itself counts: its LR is the seed LR.
    """
    step = step_at_progress(schedule, 1 - lr / schedule.seed_lr)
    return None if step is None or step < schedule.knee_step else step


def value_at(
    reports: Mapping[int, float], step: float, *, replicate: int, total_steps: int
) -> float | None:
    """What a run has at ``step`` of a replicate: reported there, or on the line between neighbours.

    None before the replicate's first report, after its last one, and where a value is NaN.
    """
    before, last = replicate * total_steps, (replicate + 1) * total_steps
    at = before + step
    known = sorted(reports)
    above = bisect_left(known, at)
    if above == len(known) or known[above] > last:
        return None
    below = above if known[above] == at else above - 1
    if below < 0 or known[below] <= before:
        return None
    left, right = known[below], known[above]
    share = (at - left) / (right - left) if left < right else 0.0
    value = _between(reports[left], reports[right], share)
    return None if math.isnan(value) else value


def is_outside(value: float, others: Sequence[float], *, percentile: float) -> bool:
    """Whether ``value`` misses the best ``percentile`` % of ``others``; smaller is better.

    The bound is their percentile as NumPy has it by default (linear between two of them). A value
    that equals it, up to rounding, does not miss it.
    """
    bound = _percentile(others, percentile)
    return value > bound and not math.isclose(value, bound, rel_tol=1e-9)


def _percentile(values: Iterable[float], percentile: float) -> float:
    ranked = sorted(values)
    rank = percentile / 100 * (len(ranked) - 1)
    low = math.floor(rank)
    return _between(ranked[low], ranked[math.ceil(rank)], rank - low)


def _between(left: float, right: float, share: float) -> float:
    """On the line from left (share 0) to right (1); an infinite right must not reach share 0."""
    return left if share == 0 else (1 - share) * left + share * right


def _whole(step: float) -> float:
    """Without the rounding error that would carry a step past the last report."""
    nearest = round(step)
    return nearest if abs(step - nearest) < 1e-6 else step
