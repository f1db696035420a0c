"""One Optuna trial on its way through the driver: its parameters, its replicates, its notes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from knee_tune.config.recipe import BaseRecipe
from knee_tune.config.study import ResolvedStudy
from knee_tune.plans.plan import Replica, TaskFacts, TrainPlan
from knee_tune.plans.planner import knee_schedule
from knee_tune.plans.step_note import counted_elsewhere
from knee_tune.records.values import Evaluation, Point, RunEnd, RunRecord, StepCount, point_of
from knee_tune.runs.locks import process_id
from knee_tune.schedules import Decay, Knee, Phased
from knee_tune.study.attributes import (
    FUSED,
    SAID_OF_TRIAL,
    fused_attr,
    replicate_attr,
    replicates_of,
    run_of,
)
from knee_tune.study.events import Ending, Recorder, RunEvents
from knee_tune.study.patient_storage import note_together
from knee_tune.study.pruners import KneePruner
from knee_tune.study.recovery import key_of
from knee_tune.study.samplers import Allowance, Axes
from knee_tune.study.study import CODE, reported_sign
from knee_tune.workers.protocol import Done, Outcome, ReplicaDone, Report

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


class PlanMaker(Protocol):
    """Makes the plan of a run; with ``replicas``, of a fused run whose first one is ``seed``'s."""

    def __call__(
        self,
        schedule: Knee | Phased,
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
    """Search space of a study, and how a point of it becomes training runs."""

    study: optuna.Study
    spec: ResolvedStudy[BaseRecipe]
    facts: TaskFacts
    """Of what is trained now."""
    axes: Axes
    plan: PlanMaker
    fused: bool = False
    """Whether the replicates of a trial train as one batched model."""
    allowance: Allowance | None = None
    """What all trials together may train; None: no matter how much."""
    batched: bool = False
    """Whether trials do as well, all that are left at once: a grid in which nothing is pruned."""
    asking: AbstractContextManager[object] = field(default_factory=nullcontext)
    """Held while a trial is asked for, against other drivers (see ``locks.asking_lock``)."""

    @property
    def seeds(self) -> Sequence[int]:
        """Random seeds: every trial is trained once with each of them, its replicates."""
        return self.spec.replicate_seeds

    def schedule(self, **point: Any) -> Knee | Phased:
        """The schedule of a point's values by the names of ``axes``."""
        return knee_schedule(self.spec.typed_recipe, self.facts, **point)


class TrialRun:
    """A trial with what the driver needs to train it and to tell its end.

    Its learning curve lies along one axis of Optuna steps: replicate r = 0, 1, ... at step t of T
    is reported at r * T + t, as the mean over replicates 0..r at step t.
    """

    def __init__(self, trial: optuna.Trial, search: Search, recorder: Recorder) -> None:
        self.trial, self._search = trial, search
        self.note(driver=process_id())  # first of all: sampling may take seconds
        if trial.user_attrs.get("reason"):
            self.note(reason="")  # why it was put back
        self.number = trial.number
        point: dict[str, Any] = {
            name: axis.suggest(trial, name) for name, axis in search.axes.items()
        }
        self.seed_lr: float = point["seed_lr"]
        self.explore_fraction: float = point["explore_fraction"]
        self.decay: Decay | None = point.get("decay")
        """None: the recipe's, which is not searched."""
        self.key = key_of(trial)
        self.events = RunEvents(recorder, self.key)
        self.schedule = search.schedule(**point)
        self.total_steps = 0
        """Of one replicate; known once it has plans."""
        self.replicate = 0
        """The one that trains; of a fused trial all do, and this stays 0."""
        self.log_dir = Path()
        """Where the ranks of its newest run write what they print."""
        self.counts: dict[str, int] = {}
        """Steps trained, reused and pruned, over all replicates and attempts."""
        known = trial.storage.get_trial(trial._trial_id)
        self.url: str | None = known.user_attrs.get("mlflow_run_url")
        """Of its MLflow run, once that is known."""
        before = dict(enumerate(replicates_of(known.user_attrs)))
        self._goes_on = known.user_attrs.get(CODE, "") == search.facts.code
        """Whether what an earlier attempt found is what this one would find."""
        values = known.intermediate_values
        if not self._goes_on:
            for step in values:  # none can be taken back, only replaced; now, for it may diverge
                trial.storage.set_trial_intermediate_value(trial._trial_id, step, nan)
            values = {}
            before = {
                index: RunRecord(
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
            before.get(index, RunRecord(seed=seed)) for index, seed in enumerate(search.seeds)
        ]
        self._curves = [
            {evaluation.step: evaluation.metrics[self.watched] for evaluation in replicate.curve}
            for replicate in self.replicates
        ]
        if not self._goes_on:
            self._note_replicates(len(before))

    def _spent(self, steps: StepCount) -> StepCount:
        """Steps that earlier attempts cost, with the state that this one has of them."""
        return steps if self._goes_on else StepCount(trained=steps.trained)

    @property
    def point(self) -> Point:
        """Its place in the search space."""
        return point_of(self.seed_lr, self.explore_fraction, self.decay)

    @property
    def metric(self) -> str:
        """Metric that the study optimises."""
        return self._search.spec.typed_recipe.objective_metric.name

    @property
    def watched(self) -> str:
        """Metric of its learning curve."""
        return self._search.spec.typed_recipe.watched_metric.name

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
        self._note_plan(plans[0], replicates=len(plans))
        return plans

    def started(self, plan: TrainPlan) -> None:
        """Tell the tracking that it begins, or goes on; ``plan`` is its first replicate's."""
        self.events.started(
            plan,
            name=f"trial {self.number}",
            number=self.number,
            seed_lr=self.seed_lr,
            explore_fraction=self.explore_fraction,
            decay=self.decay,
            replicates=len(self.replicates),
        )

    def _note_plan(self, plan: TrainPlan, *, replicates: int) -> None:
        """Keep what everybody may know of the trial's training: ``plan`` is the first replicate's.

        ``replicates``: those that are reported one behind the other.
        """
        self.total_steps = plan.total_steps
        self.note(
            key=self.key,
            code=self._search.facts.code,
            checkpoint=str(plan.checkpoint_dir),
            plan=plan.model_dump(mode="json"),
        )
        KneePruner.describe(self.trial, self.schedule, replicates=replicates)

    @property
    def steps(self) -> StepCount:
        """Steps that the run of the replicate that trains has cost, over all attempts."""
        return self.replicates[self.replicate].steps

    def has_trained(self, replicate: int) -> bool:
        """Tell whether a replicate is complete, so that nothing is left to train of it."""
        return self.replicates[replicate].state == "complete"

    def begin(self, plan: TrainPlan, *, replicate: int) -> None:
        """Note that a replicate trains, with what other code may have trained of it."""
        self.replicate, self.log_dir = replicate, plan.log_dir
        before = self.replicates[replicate]
        with counted_elsewhere(plan, before.steps, checkpoint=before.checkpoint) as steps:
            self._note_replicate(
                replicate, state="running", checkpoint=str(plan.checkpoint_dir), steps=steps
            )

    def count(self, steps: StepCount) -> None:
        """Keep what its run has cost so far."""
        self._note_replicate(self.replicate, steps=steps)
        self.note_steps(pruned=False)

    def hear(self, report: Report) -> Report | None:
        """Take an evaluation; Optuna and the tracking are told the one that is returned.

        None: Optuna was told of it before, or a replicate has left (see :meth:`whole`). History
        comes twice: when a run starts from a checkpoint, and when its result is cached.
        """
        self._remember(report)
        at = self._axis(self.replicate, report.step)
        if at in self._reported or not self.whole(report):
            return None
        told = self._mean(report)
        self.events.reported(told, replicate=self.replicate)
        self.trial.report(
            reported_sign(self._search.spec.typed_recipe) * self._mean_at(report.step), at
        )
        self._reported.add(at)
        self.note_link()
        return told

    def whole(self, report: Report) -> bool:
        """Tell whether every replicate that was evaluated still trains."""
        return True

    def _remember(self, report: Report) -> None:
        self._curves[self.replicate][report.step] = report.metrics[self.watched]

    def _mean(self, report: Report) -> Report:
        """Report that the tracking is told."""
        return report

    def _mean_at(self, step: int) -> float:
        """The mean over the replicates so far."""
        return fmean(curve[step] for curve in self._curves[: self.replicate + 1] if step in curve)

    def settle(self, outcome: Outcome, steps: StepCount, *, cached: bool) -> Ending:
        """Note how its run ended, which has cost ``steps`` in all; returns how the replicate did.

        Before the replicate counts as complete its weights are noted: an interrupted trial does not
        come here again.
        """
        ending, index = Ending.of(outcome), self.replicate
        metrics = dict(ending.metrics)
        if index == 0 and ending.end is RunEnd.COMPLETE and isinstance(outcome, Done):
            kept = {
                name: outcome.result[name]
                for name in ("weights", "serve")
                if name in outcome.result
            }
            self.note(**kept)
        self._note_replicate(
            index,
            state=ending.state,
            value=metrics.get(self.metric),
            metrics=metrics,
            answered=cached,
        )
        return ending if ending.end is RunEnd.COMPLETE else self.of_replicate(ending, index)

    def broken_off(self) -> None:
        """Note that its run ended without an answer."""
        self._note_replicate(self.replicate, state="failed")

    def of_replicate(self, ending: Ending, index: int) -> Ending:
        """The ending of the trial by that of one replicate, whose reason names it."""
        if len(self.replicates) == 1:
            return ending
        which = f" (replicate {index + 1} of {len(self.replicates)})"
        return replace(ending, reason=ending.reason + which)

    def _axis(self, replicate: int, step: int) -> int:
        return replicate * self.total_steps + step

    def note(self, **attributes: Any) -> None:
        """Keep facts with the trial, where every viewer of the study finds them."""
        note_together(self.trial, attributes)

    def _note_replicate(self, index: int, **changes: Any) -> None:
        """Keep a replicate, with its curve so far and what else is new about it."""
        self._change(index, **changes)
        noted = self.replicates[index].model_dump(mode="json", exclude=SAID_OF_TRIAL)
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

    def note_link(self) -> None:
        """Keep where its MLflow run is, once that is known; training never waits for it."""
        if self.url is None and (link := self.events.link) is not None:
            self.url = link.url
            self.note(mlflow_run_id=link.run_id, mlflow_run_url=link.url)

    def complete(self) -> Ending:
        """Keep the mean of every final metric; all replicates are complete.

        The metrics of the trial's end are those, and with several replicates the sample standard
        deviations as ``<metric>_std``.
        """
        finals = [replicate.metrics for replicate in self.replicates]
        means = {name: fmean(metrics[name] for metrics in finals) for name in finals[0]}
        self.note(metrics=means)
        if len(finals) == 1:
            return Ending(end=RunEnd.COMPLETE, metrics=means)
        spreads = {name: stdev(metrics[name] for metrics in finals) for name in finals[0]}
        self.note(spread=spreads[self.metric])
        stds = {f"{name}_std": spread for name, spread in spreads.items()}
        return Ending(end=RunEnd.COMPLETE, metrics=means | stds)

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
                and other.user_attrs.get(CODE, "") == self._search.facts.code
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


class FusedTrial(TrialRun):
    """A trial whose replicates all train step by step, as one batched model.

    Its learning curve is their mean, at the steps 1..T of the one run: to a pruner it is a trial of
    one replicate.
    """

    def plans_for(self, slot: int) -> list[TrainPlan]:
        """The one plan of all replicates, on that slot's devices, noted when it begins."""
        own = self.replicates[0].seed
        replicas = tuple(
            Replica(seed=replicate.seed, schedule=self.schedule) for replicate in self.replicates
        )
        return [
            self._search.plan(
                self.schedule, log_key=self.key, seed=own, slot=slot, replicas=replicas
            )
        ]

    def own_plan(self, plan: TrainPlan) -> TrainPlan:
        """The plan of its first replicate alone, which trains as a part of ``plan``."""
        own = {"seed": self.replicates[0].seed, "schedule": self.schedule}
        return plan.model_copy(update={**own, "replicas": (), "trunk": None})

    @property
    def steps(self) -> StepCount:
        """Steps that its run has cost in earlier attempts, as noted with the trial."""
        return run_of(self.trial.user_attrs)

    def has_trained(self, replicate: int) -> bool:
        """Tell that it never has: the end of one replicate says nothing of the others."""
        return False

    def begin(self, plan: TrainPlan, *, replicate: int = 0) -> None:
        """Note that the trial trains, in this run or as a part of it."""
        self.log_dir = plan.log_dir
        self._note_plan(self.own_plan(plan), replicates=1)
        before = self.replicates[0].checkpoint
        for index in range(len(self.replicates)):
            self._change(index, state="running", checkpoint=str(plan.checkpoint_dir))
        with counted_elsewhere(plan, self._spent(self.steps), checkpoint=before) as steps:
            self._note_fused(steps)

    def count(self, steps: StepCount) -> None:
        """Keep what the run has cost so far, every replicate of it alike."""
        for index in range(len(self.replicates)):
            self._change(index, steps=steps.of_replica(first=0, last=steps.reached))
        self._note_fused(steps)
        self.note_steps(pruned=False)

    def whole(self, report: Report) -> bool:
        """Tell whether every replicate still trains; without half of them nothing is said of it."""
        return None not in report.replicas[self.watched]

    def _remember(self, report: Report) -> None:
        for curve, value in zip(self._curves, report.replicas[self.watched], strict=True):
            if value is not None:
                curve[report.step] = value

    def _mean(self, report: Report) -> Report:
        """Means, and with several replicates ``<metric>_std``."""
        metrics = {"lr": self.schedule.lr(report.step)}
        for name, values in report.replicas.items():
            known = [value for value in values if value is not None]
            if name == "lr" or not known:
                continue
            metrics[name] = fmean(known)
            if len(known) > 1:
                metrics[f"{name}_std"] = stdev(known)
        return report.model_copy(update={"metrics": metrics, "replicas": {}})

    def _mean_at(self, step: int) -> float:
        return fmean(curve[step] for curve in self._curves if step in curve)

    def _axis(self, replicate: int, step: int) -> int:
        return step

    def settle(self, outcome: Outcome, steps: StepCount, *, cached: bool) -> Ending:
        """Note how every replicate ended; returns how the trial did.

        One that diverged ends its trial, whose mean would be that of the lucky ones. ``steps`` is
        what their run, or the batch that they were a part of, has cost.
        """
        if not isinstance(outcome, Done):
            self.broken_off()
            return Ending.of(outcome)
        endings = [_ending(done) for done in outcome.replicas]
        for index, (done, ending) in enumerate(zip(outcome.replicas, endings, strict=True)):
            self._change(
                index,
                state=ending.state,
                value=ending.metrics.get(self.metric),
                metrics=dict(ending.metrics),
                steps=steps.of_replica(first=done.first_step, last=done.step),
                answered=cached,
            )
        self._note_fused(steps)
        for index, ending in enumerate(endings):
            if ending.end is RunEnd.DIVERGED:
                return self.of_replicate(ending, index)
        for ending in endings:
            if ending.end is not RunEnd.COMPLETE:
                return ending
        self.note(weights=outcome.replicas[0].weights)
        return endings[0]

    def broken_off(self) -> None:
        """Note that the run ended without an answer."""
        for index in range(len(self.replicates)):
            self._change(index, state="failed")
        self._note_fused(self.steps)

    def _note_fused(self, run: StepCount) -> None:
        self.note(**{FUSED: fused_attr(self.replicates, watched=self.watched, run=run)})

    def _note_replicates(self, begun: int) -> None:
        if begun:
            self._note_fused(self.steps)


def _ending(done: ReplicaDone) -> Ending:
    result = {"metrics": done.metrics}
    return Ending.of(Done(state=done.state, step=done.step, reason=done.reason, result=result))
