"""One Optuna trial on its way through the driver: its parameters, its replicates, its notes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from knee_tune.config.recipe import Recipe
from knee_tune.plans.plan import Replica, TrainPlan
from knee_tune.plans.step_note import counted_elsewhere
from knee_tune.records.events import RunLink
from knee_tune.records.study import Evaluation, ReplicateRecord
from knee_tune.records.values import StepCount
from knee_tune.runs.locks import process_id
from knee_tune.schedules import Knee
from knee_tune.study.attributes import FUSED, fused_attr, replicate_attr, replicates_of, run_of
from knee_tune.study.events import Ending
from knee_tune.study.recovery import key_of
from knee_tune.study.samplers import Axis
from knee_tune.study.study import CODE, reported_sign
from knee_tune.workers.protocol import Done, ReplicaDone, Report

_SHARED_BY_TWINS = (
    "key",
    CODE,
    "checkpoint",
    "plan",
    "schedule",
    "replicates",
    "metrics",
    "spread",
    "weights",
    "mlflow_run_id",
    "mlflow_run_url",
)

_OF_THE_KNEE = {"seed_lr", "total_steps", "warmup_steps", "explore_steps"}


class PlanMaker(Protocol):
    """Makes the plan of a run; with ``replicas``, of a fused run whose first one is ``seed``'s."""

    def __call__(
        self,
        schedule: Knee,
        *,
        log_key: str,
        seed: int,
        slot: int,
        replicas: Sequence[Replica] = (),
    ) -> TrainPlan:
        """``log_key`` names its logs, ``slot`` the devices that it gets."""
        ...


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched: the study, its axes, and how a point becomes training runs."""

    study: optuna.Study
    recipe: Recipe
    axes: Mapping[str, Axis]
    seeds: Sequence[int]
    """Random seeds: every trial is trained once with each of them, its replicates."""
    schedule: Callable[[float, float], Knee]
    """Of a seed LR and an explore fraction."""
    plan: PlanMaker
    code: str = ""
    """Fingerprint of the code that trains now."""
    parameters: int = 1
    """Of the task's model."""
    fused: bool = False
    """Whether the replicates of a trial train as one batched model."""
    batched: bool = False
    """Whether trials do as well, all that are left at once: a grid in which nothing is pruned."""
    asking: AbstractContextManager[object] = field(default_factory=nullcontext)
    """Held while a trial is asked for, against other drivers (see ``asking.asking_lock``)."""


class TrialRun:
    """A trial with what the driver needs to train it and to tell its end.

    Its learning curve lies along one axis of Optuna steps: replicate r = 0, 1, ... at step t of T
    is reported at r * T + t, as the mean over replicates 0..r at step t.
    """

    def __init__(self, trial: optuna.Trial, search: Search) -> None:
        self.trial, self._search = trial, search
        self.note(driver=process_id())  # first of all: sampling may take seconds
        if trial.user_attrs.get("reason"):
            self.note(reason="")  # why it was put back
        self.number = trial.number
        self.seed_lr = self._suggest("seed_lr")
        self.explore_fraction = self._suggest("explore_fraction")
        self.key = key_of(trial)
        self.schedule = search.schedule(self.seed_lr, self.explore_fraction)
        self.total_steps = 0
        """Of one replicate; known once it has plans."""
        self.log_dir = Path()
        """Where the ranks of its newest run write what they print."""
        self.counts: dict[str, int] = {}
        """Steps trained, reused and pruned, over all replicates and attempts."""
        known = trial.storage.get_trial(trial._trial_id)
        self.url: str | None = known.user_attrs.get("mlflow_run_url")
        """Of its MLflow run, once that is known."""
        before = dict(enumerate(replicates_of(known.user_attrs)))
        self._goes_on = known.user_attrs.get(CODE, "") == search.code
        """Whether what an earlier attempt found is what this one would find."""
        values = known.intermediate_values
        if not self._goes_on:
            for step in values:  # none can be taken back, only replaced; now, for it may diverge
                trial.storage.set_trial_intermediate_value(trial._trial_id, step, nan)
            values = {}
            before = {
                index: ReplicateRecord(
                    seed=replicate.seed,
                    steps=self._spent(replicate.steps),
                    checkpoint=replicate.checkpoint,
                )
                for index, replicate in before.items()
            }
        values = {step: value for step, value in values.items() if not isnan(value)}
        trial._cached_frozen_trial.intermediate_values = values
        self._reported = set(values)
        self.replicates = [
            before.get(index, ReplicateRecord(seed=seed)) for index, seed in enumerate(search.seeds)
        ]
        self._curves = [
            {evaluation.step: evaluation.metrics[self.watched] for evaluation in replicate.curve}
            for replicate in self.replicates
        ]
        if not self._goes_on:
            self._note_replicates(len(before))

    def _spent(self, steps: StepCount) -> StepCount:
        """What earlier attempts cost, with the state that this one has of them."""
        return steps if self._goes_on else StepCount(trained=steps.trained)

    def _suggest(self, name: str) -> float:
        span = self._search.axes[name].distribution()
        return self.trial.suggest_float(name, span.low, span.high, log=span.log)

    @property
    def metric(self) -> str:
        """What the study optimises."""
        return f"valid_{self._search.recipe.objective}"

    @property
    def watched(self) -> str:
        """The metric of its learning curve."""
        return f"valid_{self._search.recipe.watched}"

    @property
    def budget(self) -> int:
        """Steps of all its replicates together."""
        return len(self.replicates) * self.total_steps

    def plans_for(self, slot: int) -> list[TrainPlan]:
        """One plan per replicate, on that slot's devices; notes what everybody may know of them.

        The notes are there before the first report: pruners read them.
        """
        own, *others = self._search.seeds
        log_keys = {own: self.key} | {seed: f"{self.key}-seed-{seed}" for seed in others}
        plans = [
            self._search.plan(self.schedule, log_key=log_key, seed=seed, slot=slot)
            for seed, log_key in log_keys.items()
        ]
        self.note_plan(plans[0], replicates=len(plans))
        return plans

    def note_plan(self, plan: TrainPlan, *, replicates: int) -> None:
        """Keep what everybody may know of the trial's training: ``plan`` is the first replicate's.

        ``replicates``: those that are reported one behind the other.
        """
        dumped = plan.model_dump(mode="json")
        self.total_steps = plan.total_steps
        self.note(
            key=self.key,
            code=self._search.code,
            checkpoint=str(plan.checkpoint_dir),
            plan=dumped,
            schedule={name: dumped["schedule"][name] for name in _OF_THE_KNEE},
            replicates=replicates,
        )

    def remember(self, replicate: int, step: int, metrics: Mapping[str, float]) -> bool:
        """Take an evaluation of a replicate; False if Optuna was told of it before.

        History comes twice: when a run starts from a checkpoint, and when it is answered from its
        record.
        """
        self._curves[replicate][step] = metrics[self.watched]
        return self._axis(replicate, step) not in self._reported

    def report(self, replicate: int, step: int) -> None:
        """Tell Optuna the mean over the replicates so far, in the study's direction."""
        mean = fmean(curve[step] for curve in self._curves[: replicate + 1] if step in curve)
        at = self._axis(replicate, step)
        self.trial.report(reported_sign(self._search.recipe) * mean, at)
        self._reported.add(at)

    def _axis(self, replicate: int, step: int) -> int:
        return replicate * self.total_steps + step

    def note(self, **attributes: Any) -> None:
        """Keep facts with the trial, where every viewer of the study finds them."""
        for name, value in attributes.items():
            self.trial.set_user_attr(name, value)

    def note_replicate(self, index: int, **changes: Any) -> None:
        """Keep what is new about a replicate, with its curve so far."""
        self._change(index, **changes)
        self._note_replicate(index)

    def _note_replicate(self, index: int) -> None:
        noted = self.replicates[index].model_dump(mode="json")
        self.note(**{replicate_attr(index): noted})

    def _note_replicates(self, begun: int) -> None:
        """Keep the first replicates, those that were begun."""
        for index in range(begun):
            self._note_replicate(index)

    def _change(self, index: int, **changes: Any) -> None:
        curve = tuple(
            Evaluation(step=step, metrics={self.watched: value})
            for step, value in sorted(self._curves[index].items())
        )
        self.replicates[index] = self.replicates[index].model_copy(
            update={"curve": curve, **changes}
        )

    def note_steps(self, *, pruned: bool) -> None:
        """Keep what the trial cost; ``pruned``: nobody will train what is left of its budget."""
        steps = sum((replicate.steps for replicate in self.replicates), StepCount())
        self.counts = {
            "steps_trained": steps.trained,
            "steps_reused": steps.reused,
            "steps_pruned": self.budget - steps.reached if pruned else 0,
        }
        recorded = sum(run.steps.reused for run in self.replicates if run.answered)
        self.note(**self.counts, steps_recorded=recorded)

    def note_link(self, link: RunLink | None) -> None:
        """Keep where its MLflow run is, once that is known; training never waits for it."""
        if self.url is None and link is not None:
            self.url = link.url
            self.note(mlflow_run_id=link.run_id, mlflow_run_url=link.url)

    def note_means(self) -> dict[str, float]:
        """Keep the mean of every final metric; all replicates are complete.

        Returns them, and with several replicates the sample standard deviations as
        ``<metric>_std``.
        """
        finals = [replicate.metrics for replicate in self.replicates]
        means = {name: fmean(metrics[name] for metrics in finals) for name in finals[0]}
        self.note(metrics=means)
        if len(finals) == 1:
            return means
        spreads = {name: stdev(metrics[name] for metrics in finals) for name in finals[0]}
        self.note(spread=spreads[self.metric])
        return means | {f"{name}_std": spread for name, spread in spreads.items()}

    def finished_twin(self) -> FrozenTrial | None:
        """A complete or pruned trial with the same parameters and code, if there is one."""
        finished = self.trial.study.get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
        )
        return next(
            (
                other
                for other in finished
                if other.params == self.trial.params
                and other.user_attrs.get(CODE, "") == self._search.code
            ),
            None,
        )

    def copy(self, twin: FrozenTrial, *, reason: str) -> None:
        """Take over what ``twin`` measured; no step is trained for it, all of them are reused."""
        known = twin.user_attrs
        shared = {name: known[name] for name in _SHARED_BY_TWINS if name in known}
        self.note(**shared, reason=reason)
        self.url = known.get("mlflow_run_url")
        self.total_steps = known["plan"]["schedule"]["total_steps"]
        records = replicates_of(known)
        for index, record in enumerate(records):
            reached = record.steps.reached
            steps = StepCount(reused=reached, reached=reached)
            self._change(index, **{**dict(record), "steps": steps, "answered": True})
        self._note_replicates(len(records))
        self.note_steps(pruned=twin.state == TrialState.PRUNED)
        for at, value in twin.intermediate_values.items():
            if at not in self._reported:
                self.trial.report(value, at)


# A fused trial: all its replicates train step by step, as one batched model.


class FusedTrial(TrialRun):
    """A trial that learns of all its replicates at once.

    Its learning curve is their mean, at the steps 1..T of the one run: to a pruner it is a trial of
    one replicate.
    """

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The models of its replicates, in their order."""
        return tuple(
            Replica(seed=replicate.seed, schedule=self.schedule) for replicate in self.replicates
        )

    @property
    def run_steps(self) -> StepCount:
        """What its run has cost in earlier attempts, as noted with the trial."""
        return run_of(self.trial.user_attrs)

    def plan_for(self, slot: int) -> TrainPlan:
        """The one plan of all replicates, on that slot's devices; notes what others may know."""
        own = self.replicates[0].seed
        plan = self._search.plan(
            self.schedule, log_key=self.key, seed=own, slot=slot, replicas=self.replicas
        )
        self.begin(plan)
        return plan

    def begin(self, plan: TrainPlan) -> None:
        """Note that the trial trains, in this run or as a part of it.

        The plan that is noted is the first replicate's alone.
        """
        self.own_plan = plan.model_copy(
            update={
                "seed": self.replicates[0].seed,
                "schedule": self.schedule,
                "replicas": (),
                "trunk": None,
            }
        )
        self.note_plan(self.own_plan, replicates=1)
        before = self.replicates[0].checkpoint
        for index in range(len(self.replicates)):
            self._change(index, state="running", checkpoint=str(plan.checkpoint_dir))
        with counted_elsewhere(plan, self._spent(self.run_steps), checkpoint=before) as steps:
            self._note_fused(steps)

    def whole(self, report: Report) -> bool:
        """Whether every replicate still trains; without half of them nothing is said of it."""
        return None not in report.replicas[self.watched]

    def remember_all(self, report: Report) -> bool:
        """Take an evaluation of all replicates; False if Optuna was told of it before."""
        for curve, value in zip(self._curves, report.replicas[self.watched], strict=True):
            if value is not None:
                curve[report.step] = value
        return report.step not in self._reported

    def mean(self, report: Report) -> Report:
        """What the tracking is told: means, and with several replicates ``<metric>_std``."""
        metrics = {"lr": self.schedule.lr(report.step)}
        for name, values in report.replicas.items():
            known = [value for value in values if value is not None]
            if name == "lr" or not known:
                continue
            metrics[name] = fmean(known)
            if len(known) > 1:
                metrics[f"{name}_std"] = stdev(known)
        return report.model_copy(update={"metrics": metrics, "replicas": {}})

    def report_all(self, step: int) -> None:
        """Tell Optuna the mean over all replicates, in the study's direction."""
        self.report(len(self.replicates) - 1, step)

    def _axis(self, replicate: int, step: int) -> int:
        return step

    def note_run(self, run: StepCount) -> None:
        """Keep what the run has cost so far, every replicate of it alike."""
        for index in range(len(self.replicates)):
            self._change(index, steps=run.of_replica(first=0, last=run.reached))
        self._note_fused(run)
        self.note_steps(pruned=False)

    def broken_off(self) -> None:
        """Note that the run ended without an answer."""
        for index in range(len(self.replicates)):
            self._change(index, state="failed")
        self._note_fused(self.run_steps)

    def settle(self, dones: Sequence[ReplicaDone], run: StepCount, *, answered: bool) -> Ending:
        """Note how every replicate ended; returns how the trial did.

        One that diverged ends its trial, whose mean would be that of the lucky ones. ``run`` is
        what their run, or the batch that they were a part of, has cost.
        """
        endings = [_ending(done) for done in dones]
        for index, (done, ending) in enumerate(zip(dones, endings, strict=True)):
            self._change(
                index,
                state=ending.end,
                value=ending.metrics.get(self.metric),
                metrics=dict(ending.metrics),
                steps=run.of_replica(first=done.first_step, last=done.step),
                answered=answered,
            )
        self._note_fused(run)
        diverged = (index for index, ending in enumerate(endings) if _has_diverged(ending))
        if (lost := next(diverged, None)) is not None:
            which = f" (replicate {lost + 1} of {len(dones)})" if len(dones) > 1 else ""
            return replace(endings[lost], reason=endings[lost].reason + which)
        if (
            stopped := next((each for each in endings if each.end != "complete"), None)
        ) is not None:
            return stopped
        self.note(weights=dones[0].weights)
        return Ending(end="complete", metrics=self.note_means())

    def _note_fused(self, run: StepCount) -> None:
        self.note(**{FUSED: fused_attr(self.replicates, watched=self.watched, run=run)})

    def _note_replicates(self, begun: int) -> None:
        if begun:
            self._note_fused(self.run_steps)


def _ending(done: ReplicaDone) -> Ending:
    result = {"metrics": done.metrics}
    return Ending.of(Done(state=done.state, step=done.step, reason=done.reason, result=result))


def _has_diverged(ending: Ending) -> bool:
    return ending.reason.startswith("diverged")
