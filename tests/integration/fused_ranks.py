"""A worker group that trains fused runs whose learning curves are written down."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from knee_tune.plans.plan import Plan, Replica, TrainPlan
from knee_tune.schedules import Knee
from knee_tune.workers.protocol import Channel, Done, Outcome, ReplicaDone, Report
from tests.fake_runner import FakeRunner, What

Curve = Callable[[Replica, int], float]
"""The accuracy of a replica after a step; NaN: it diverges there."""


def rising(replica: Replica, step: int) -> float:
    """Ten points between two random seeds; a longer explore phase is worth less."""
    assert isinstance(replica.schedule, Knee)
    return 80.0 - 10 * replica.seed + step / 10 - replica.schedule.explore_steps / 100


class FusedRanks(FakeRunner):
    """Goes on from its last evaluation, as if from a checkpoint.

    Replicas of one random seed and seed LR share their trunk: the one that explores the longest
    trains it for all.
    """

    def __init__(self, *faults: What | None, curve: Curve = rising) -> None:
        super().__init__(*faults)
        self.curve = curve
        self.starts: list[int] = []
        """The first step of every attempt."""
        self._reached: dict[Path, int] = {}

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        assert isinstance(plan, TrainPlan)
        assert plan.replicas
        first = self._reached.get(plan.checkpoint_dir, 0)
        self.starts.append(first)
        measured = plan.evaluation_steps()
        for step in filter(lambda step: step <= first, measured):
            channel.report(self._report(plan, step))
        stopped = False
        step = first
        for step in range(first + 1, plan.total_steps + 1):
            channel.progress(step)
            if step in measured:
                self._reached[plan.checkpoint_dir] = step
                stopped = channel.report(self._report(plan, step)).stop
                if stopped:
                    break
        return self._done(plan, step, first=first, stopped=stopped)

    def _lost_at(self, plan: TrainPlan, replica: Replica, step: int) -> int | None:
        seen = [at for at in plan.evaluation_steps() if at <= step]
        return next((at for at in seen if math.isnan(self.curve(replica, at))), None)

    def _report(self, plan: TrainPlan, step: int) -> Report:
        values = tuple(
            None if self._lost_at(plan, replica, step) else self.curve(replica, step)
            for replica in plan.replicas
        )
        lrs = tuple(replica.schedule.lr(step) for replica in plan.replicas)
        known = [value for value in values if value is not None]
        return Report(
            step=step,
            total_steps=plan.total_steps,
            metrics={"lr": fmean(lrs), "valid_accuracy": fmean(known or [0.0])},
            seconds=0,
            replicas={"lr": lrs, "valid_accuracy": values},
        )

    def _done(self, plan: TrainPlan, step: int, *, first: int, stopped: bool) -> Done:
        plan.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        shared = shared_steps(plan.replicas)
        replicas = []
        for place, replica in enumerate(plan.replicas):
            lost = self._lost_at(plan, replica, step)
            if lost is not None:
                done = ReplicaDone(
                    state="diverged", step=lost, first_step=shared[place], reason="non-finite loss"
                )
            elif stopped:
                done = ReplicaDone(state="stopped", step=step, first_step=shared[place])
            else:
                weights = plan.checkpoint_dir / f"replica-{place}.safetensors"
                weights.write_text(f"{replica}")
                value = self.curve(replica, step)
                done = ReplicaDone(
                    state="complete",
                    step=step,
                    first_step=shared[place],
                    metrics={"valid_accuracy": value, "valid_loss": replica.seed / 2},
                    weights=str(weights),
                )
            replicas.append(done)
        complete = [done for done in replicas if done.state == "complete"]
        if not complete:
            return Done(
                state="stopped" if stopped else "diverged",
                step=step,
                first_step=first,
                replicas=tuple(replicas),
            )
        means = {
            name: fmean(done.metrics[name] for done in complete) for name in complete[0].metrics
        }
        return Done(
            state="complete",
            step=step,
            first_step=first,
            result={"metrics": means, "weights": complete[0].weights},
            replicas=tuple(replicas),
        )


def shared_steps(replicas: tuple[Replica, ...]) -> list[int]:
    """Up to which step another replica is trained for each of these."""
    longest: dict[tuple[int, float], int] = {}
    for place, replica in enumerate(replicas):
        trunk = (replica.seed, replica.schedule.seed_lr)
        known = longest.setdefault(trunk, place)
        if knee_of(replica) > knee_of(replicas[known]):
            longest[trunk] = place
    leaders = set(longest.values())
    return [0 if place in leaders else knee_of(each) for place, each in enumerate(replicas)]


def knee_of(replica: Replica) -> int:
    """The step at which it leaves its trunk."""
    assert isinstance(replica.schedule, Knee)
    return replica.schedule.knee_step
