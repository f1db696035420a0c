"""Pruners: KneePruner, which compares trials where their schedules agree, and Optuna's by name."""

import math
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from knee_tune.schedules import Knee, Phased
from knee_tune.schedules.schedule import as_stored, phase_at

SCHEDULE = "schedule"
"""The trial's user attribute with the fields of its Knee schedule."""

REPLICATES = "replicates"
"""The trial's user attribute with its number of replicates; one if it has none."""


class KneePruner(BasePruner):
    """Prunes trials of Knee schedules, never for exploring longer than others.

    A trial is pruned when, at ``patience`` evaluations in a row, its value misses the best
    ``percentile`` % of what complete trials had

    - ``align="step"``: at the same step, those alone whose LR was not below this trial's there. At
      a higher LR values are noisier and have more to gain from the decay, so whoever is worse than
      them lags behind; one that explores is never compared with one of its own or a lower seed LR
      that decays already. It acts from the end of the warmup on.
    - ``align="lr"``: when their LR had come down to the same value. It acts in the decay, once the
      LR is at most ``max_lr_fraction`` of ``max_seed_lr``, and compares with trials whose seed LR
      is not below the current LR.
    - ``align="progress"``: when they had the same share of their decay behind them. It acts in the
      decay, once that share is ``min_progress``.

    A value between two evaluations of a comparator is interpolated. Compared are trials of the same
    budget and number of replicates, and means over the same replicates. Of schedules with phases
    each phase is compared alone, as a Knee of its own: losses of another one say nothing. Warmup
    and last evaluation are never pruned for being worse. A NaN prunes, wherever it is reported but
    at the end. Failed, running and pruned trials are no comparators.

    It must know each trial's schedule: see ``describe``. A trial without one is never pruned,
    and warns.

    ``percentile`` has the meaning of Optuna's ``PercentilePruner``: 10 keeps the best
    10 %, 50 keeps the better half, 100 prunes only what is worse than all. Nothing is pruned before
    ``n_startup_trials`` comparable trials are complete, and where fewer than ``n_min_trials`` of
    them have a value to compare with.

    ``max_seed_lr`` is the largest seed LR that the study may try. Without it, it is the upper bound
    of the trial's parameter ``param`` if that is the schedule's seed LR, otherwise the largest seed
    LR among the complete trials and this one.
    """

    def __init__(
        self,
        *,
        align: Literal["step", "lr", "progress"] = "step",
        percentile: float = 50.0,
        patience: int = 3,
        n_startup_trials: int = 6,
        n_min_trials: int = 4,
        max_lr_fraction: float = 0.25,
        min_progress: float = 0.3,
        max_seed_lr: float | None = None,
        param: str = "seed_lr",
    ) -> None:
        _check(align in ("step", "lr", "progress"), "align", align, "'step', 'lr' or 'progress'")
        _check(0 <= percentile <= 100, "percentile", percentile, "between 0 and 100")
        _check(patience >= 1, "patience", patience, "at least 1")
        _check(n_startup_trials >= 0, "n_startup_trials", n_startup_trials, "at least 0")
        _check(n_min_trials >= 1, "n_min_trials", n_min_trials, "at least 1")
        _check(0 < max_lr_fraction <= 1, "max_lr_fraction", max_lr_fraction, "in (0, 1]")
        _check(0 <= min_progress < 1, "min_progress", min_progress, "in [0, 1)")
        usable = max_seed_lr is None or 0 < max_seed_lr < math.inf
        _check(usable, "max_seed_lr", max_seed_lr, "positive and finite, or None")
        self._align, self._percentile, self._patience = align, percentile, patience
        self._n_startup_trials, self._n_min_trials = n_startup_trials, n_min_trials
        self._max_lr_fraction, self._min_progress = max_lr_fraction, min_progress
        self._max_seed_lr, self._param = max_seed_lr, param
        self._warned = False
        self._finished: dict[int, _Finished] = {}

    @staticmethod
    def describe(
        trial: optuna.Trial | optuna.trial.FixedTrial,
        schedule: Knee | Phased,
        *,
        replicates: int = 1,
    ) -> None:
        """Tell the pruner a trial's schedule, before the trial's first report.

        Report at the schedule's own steps 1..total_steps. With ``replicates`` > 1, report replicate
        r = 0, 1, .. at step r * total_steps + step, the mean over replicates 0..r at that step.
        """
        _check(replicates >= 1, "replicates", replicates, "at least 1")
        described = as_stored(schedule)
        del described["name"]
        trial.set_user_attr(SCHEDULE, described)
        trial.set_user_attr(REPLICATES, replicates)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Tell whether the trial should end here; Optuna asks, by ``trial.should_prune()``."""
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        at = trial.last_step
        if at is None:
            return False
        described = _describe(trial)
        if described is None:
            warnings.warn(
                f"trial {trial.number} is never pruned: KneePruner does not know its schedule; "
                "call KneePruner.describe(trial, schedule) before the first report",
                stacklevel=3,
            )
            return False
        value = sign * trial.intermediate_values[at]
        known = self._known(study, described)
        self._warn_of_other_steps(trial, described, known)
        if at >= described.replicates * described.total_steps:
            return False  # it is over anyway
        if math.isnan(value):
            return True
        if len(known) < self._n_startup_trials:
            return False
        phase, after = described.locate(at)
        schedule = described.phases[phase]
        peers = [other.in_phase(phase, after) for other in known]
        recent = sorted(step for step in trial.intermediate_values if after < step <= at)
        return len(recent) >= self._patience and all(
            self._misses(trial, schedule, step, peers, after=after, sign=sign)
            for step in recent[: -self._patience - 1 : -1]
        )

    def _known(self, study: optuna.Study, described: "_Described") -> "list[_Finished]":
        """Complete trials of the same budget, phases and replicates.

        Each is looked at once: a study may have ten thousand, and is asked for them at every report
        of every trial. A trial that is complete stays the same object, where storages keep them.
        """
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        before = self._finished
        self._finished = {
            id(trial): before.get(id(trial)) or _Finished(trial) for trial in complete
        }
        return [
            other
            for other in self._finished.values()
            if other.described is not None
            and other.steps == described.steps
            and other.described.replicates == described.replicates
        ]

    def _warn_of_other_steps(
        self, trial: FrozenTrial, described: "_Described", known: "Sequence[_Finished]"
    ) -> None:
        """Warn, once, that reports and schedule count differently, in epochs and in steps say.

        They do where a report lies beyond the budget, or where a complete trial was reported for
        the last time before half of it.
        """
        total = described.replicates * described.total_steps
        reports: Mapping[int, float] = trial.intermediate_values
        if max(reports) <= total:
            first = known[0].trial.intermediate_values if known else None
            if not first or 2 * max(first) >= total:
                return
            reports = first
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"reports at {min(reports):,}..{max(reports):,} and a schedule of "
                f"1..{total:,} steps count differently, so trials are compared at wrong places; "
                "report at the schedule's own steps, or give Knee its steps in the reports' unit",
                stacklevel=4,
            )

    def _misses(
        self,
        trial: FrozenTrial,
        schedule: Knee,
        reported: int,
        peers: Sequence["_Peer"],
        *,
        after: int,
        sign: int,
    ) -> bool:
        """Tell whether what the trial reported there is not among the best.

        The phase that ``schedule`` is of begins ``after`` that step.
        """
        step = reported - after
        if not self._acts(trial, schedule, step, peers):
            return False
        others = [sign * other for other in self._values(peers, schedule, step)]
        value = sign * trial.intermediate_values[reported]
        return len(others) >= self._n_min_trials and is_outside(
            value, others, percentile=self._percentile
        )

    def _acts(
        self, trial: FrozenTrial, schedule: Knee, step: int, peers: Sequence["_Peer"]
    ) -> bool:
        if self._align == "step":
            return step > schedule.warmup_steps
        if step <= schedule.knee_step:
            return False
        if self._align == "progress":
            return decay_progress(schedule, step) >= self._min_progress
        highest = (
            self._max_seed_lr
            or _upper_bound(trial, self._param, schedule.seed_lr)
            or max([schedule.seed_lr, *(peer.schedule.seed_lr for peer in peers)])
        )
        return schedule.lr(step) <= self._max_lr_fraction * highest

    def _values(self, peers: Sequence["_Peer"], schedule: Knee, step: int) -> list[float]:
        """Values of peers where they can be compared with this trial's; of those that have one."""
        if self._align == "step":
            lowest = schedule.lr(step)
            found = [peer.at(step) for peer in peers]
            return [
                value
                for lr, value in found
                if value is not None and (lr >= lowest or math.isclose(lr, lowest))
            ]
        if self._align == "progress":
            progress = decay_progress(schedule, step)
            places = [step_at_progress(peer.schedule, progress) for peer in peers]
        else:
            lr = schedule.lr(step)
            places = [step_at_lr(peer.schedule, lr) for peer in peers]
        values = [
            None if place is None else peer.value_at(place)
            for peer, place in zip(peers, places, strict=True)
        ]
        return [value for value in values if value is not None]


class _Described(NamedTuple):
    phases: tuple[Knee, ...]
    replicates: int

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each phase."""
        return tuple(each.total_steps for each in self.phases)

    @property
    def total_steps(self) -> int:
        """Of one replicate."""
        return sum(self.steps)

    def locate(self, reported: int) -> tuple[int, int]:
        """The phase (from 0) of what was reported there, and the step before its first one."""
        replicate, step = locate(reported, total_steps=self.total_steps)
        ends = [*accumulate(self.steps)]
        phase = phase_at(ends, step)
        return phase, replicate * self.total_steps + (0, *ends)[phase]


class _Finished:
    """A complete trial, with what is asked of it again and again."""

    def __init__(self, trial: FrozenTrial) -> None:
        self.trial = trial
        self.described = _describe(trial)
        self.steps = () if self.described is None else self.described.steps
        self._phases: dict[tuple[int, int], _Peer] = {}

    def in_phase(self, phase: int, after: int) -> "_Peer":
        """Look at one of its phases, which in this replicate begins ``after`` that step."""
        place = phase, after
        if place not in self._phases:
            assert self.described is not None
            self._phases[place] = _Peer(
                self.described.phases[phase], self.trial.intermediate_values, after
            )
        return self._phases[place]


class _Peer:
    """A complete trial in the phase that is compared."""

    def __init__(self, schedule: Knee, reports: Mapping[int, float], after: int) -> None:
        self.schedule, self._reports, self._after = schedule, reports, after
        self._at: dict[int, tuple[float, float | None]] = {}

    def at(self, step: int) -> tuple[float, float | None]:
        """LR and value at a step of the phase; no value if it has none there."""
        found = self._at.get(step)
        if found is None:
            found = self._at[step] = self.schedule.lr(step), self.value_at(step)
        return found

    def value_at(self, step: float) -> float | None:
        """See :func:`value_at`."""
        steps = self.schedule.total_steps
        return value_at(self._reports, step, after=self._after, steps=steps)


def _describe(trial: FrozenTrial) -> _Described | None:
    """The trial's schedule and replicates; None if its attributes do not give them."""
    fields: Any = trial.user_attrs.get(SCHEDULE)
    replicates = trial.user_attrs.get(REPLICATES, 1)
    try:
        each = fields.get("phases", [fields])
        phases = tuple(Knee(**knee) for knee in each)
    except (
        AttributeError,
        TypeError,
        ValueError,
    ):  # another schedule's, or somebody's own attribute
        return None
    return _Described(phases, replicates) if isinstance(replicates, int) else None


def _upper_bound(trial: FrozenTrial, param: str, seed_lr: float) -> float | None:
    """The largest seed LR that may be tried; None if the parameter is not the seed LR."""
    value = trial.params.get(param)
    if not isinstance(value, int | float) or not math.isclose(value, seed_lr):
        return None
    match trial.distributions[param]:
        case FloatDistribution(high=high) | IntDistribution(high=high):
            return float(high)
        case CategoricalDistribution(choices=choices):
            return max(float(choice) for choice in choices if isinstance(choice, int | float))
        case _:
            return None


def _check(right: bool, name: str, value: Any, wanted: str) -> None:
    if not right:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


# At the same step one run still explores while another already decays, and a decaying run always
# looks better. So the decays are laid over each other, by LR or by their progress.


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
    progress = schedule.decay_progress_at(lr)
    return None if progress is None else step_at_progress(schedule, progress)


def value_at(reports: Mapping[int, float], step: float, *, after: int, steps: int) -> float | None:
    """Value of a run at ``step`` of a stretch: reported there, or between its neighbours.

    The stretch, a replicate or a phase of one, is ``steps`` long and begins ``after`` that step.
    None before its first report, after its last one, and where a value is NaN.
    """
    at, last = after + step, after + steps
    known = sorted(reports)
    above = bisect_left(known, at)
    if above == len(known) or known[above] > last:
        return None
    below = above if known[above] == at else above - 1
    if below < 0 or known[below] <= after:
        return None
    left, right = known[below], known[above]
    share = (at - left) / (right - left) if left < right else 0.0
    value = _between(reports[left], reports[right], share)
    return None if math.isnan(value) else value


def is_outside(value: float, others: Sequence[float], *, percentile: float) -> bool:
    """Tell whether ``value`` misses the best ``percentile`` % of ``others``; smaller is better.

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


STARTUP_TRIALS = 4
"""Complete trials before a raw-step pruner acts: enough for a median, few for a short study."""

KEPT_PERCENTILE = 25.0
"""What PercentilePruner keeps."""

REDUCTION = 3

BRACKETS = 4
"""Hyperband's: the first rung of its greediest bracket is 1/27 of the budget."""

_RAW_STEP = ("median", "percentile", "hyperband")


class PruningBrackets(BasePruner):
    """Hyperband whose brackets are the pruner's alone.

    Optuna shows a sampler only the trials of one bracket if it sees that the study's pruner is a
    HyperbandPruner. A search of grid points would try points again that another bracket has.
    """

    def __init__(self, hyperband: HyperbandPruner) -> None:
        self._hyperband = hyperband

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Prune as Hyperband does."""
        return self._hyperband.prune(study, trial)


def make_pruner(name: str, *, total_steps: int, replicates: int = 1) -> BasePruner:
    """The pruner called ``name`` for trials of ``replicates`` runs of ``total_steps``.

    Replicates are reported behind each other, so the steps of a trial run to their product. Median
    and percentile stay out of the first half of the first run: there a trial that already decays
    always looks better. (In later runs they judge the best so far, which the first run has set.)
    """
    match name:
        case "knee":
            return KneePruner()
        case "none":
            return NopPruner()
        case "median":
            return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=total_steps // 2)
        case "percentile":
            return PercentilePruner(
                KEPT_PERCENTILE, n_startup_trials=STARTUP_TRIALS, n_warmup_steps=total_steps // 2
            )
        case "hyperband":
            longest = replicates * total_steps
            return PruningBrackets(
                HyperbandPruner(
                    min_resource=max(1, longest // REDUCTION ** (BRACKETS - 1)),
                    max_resource=longest,
                    reduction_factor=REDUCTION,
                )
            )
    raise ValueError(f"pruner must be knee, {', '.join(_RAW_STEP)} or none, got {name!r}")


def raw_step_warning(name: str) -> str | None:
    """Warning, in one line, of a pruner that compares at equal steps; None for others."""
    if name not in _RAW_STEP:
        return None
    return (
        f"pruner {name} compares trials at equal steps, where one that already decays looks better "
        "than one that still explores: it prunes long exploration too often (knee does not)"
    )
