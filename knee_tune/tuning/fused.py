"""A fused trial: all its replicates train step by step, as one batched model."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from knee_tune.distributed.protocol import Done, ReplicaDone, Report
from knee_tune.planning.plan import Replica, TrainPlan
from knee_tune.planning.step_note import counted_elsewhere
from knee_tune.specs.steps import StepCount
from knee_tune.tuning.events import Ending
from knee_tune.tuning.replicate_notes import FUSED, fused_attr, run_of
from knee_tune.tuning.trial import TrialRun


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
