"""A group runner whose ranks only count steps, but keep and find checkpoints as real ones do."""

import time
from pathlib import Path

from knee_tune.plans.plan import (
    Plan,
    TaskOrder,
    TrainPlan,
    TrunkPlan,
    checkpoint_path,
    checkpoint_paths,
    checkpoint_step,
)
from knee_tune.plans.step_note import StepNote
from knee_tune.schedules import Knee
from knee_tune.workers.protocol import Channel, Done, Outcome, Report
from tests.fake_runner import FakeRunner, What

TOTAL, EVERY = 100, 10


def knee_plan(home: Path, *, knee: int, seed_lr: float = 0.1, name: str = "") -> TrainPlan:
    """A run of 100 steps that leaves its trunk at ``knee``; checkpoints are at every tenth step."""
    key = f"digits-{seed_lr:g}"
    order = TaskOrder(
        task="digits",
        recipe={},
        seed=0,
        data_dir=home,
        log_dir=home / "logs" / (name or f"knee-{knee}"),
    )
    return TrainPlan(
        **dict(order),
        schedule=Knee(seed_lr=seed_lr, total_steps=TOTAL, warmup_steps=0, explore_steps=knee),
        steps_per_evaluation=EVERY,
        checkpoint_dir=home / "checkpoints" / f"{key}-{knee}",
        trunk=TrunkPlan(
            key=key, folder=home / "trunks" / key, checkpoint_steps=tuple(range(10, knee + 1, 10))
        ),
    )


class PretendRanks(FakeRunner):
    """Trains a plan by counting; an ArithmeticError is a loss that is lost."""

    def __init__(self, *faults: What | None, seconds_per_step: float = 0.0, size: int = 100):
        super().__init__(*faults)
        self.seconds_per_step, self.size = seconds_per_step, size
        self.trained: list[tuple[str, int]] = []
        """The name and the step, of every step of any run."""

    def job(self, plan: Plan, channel: Channel) -> Outcome:
        assert isinstance(plan, TrainPlan)
        first = step = newest_step(plan)
        note = StepNote(plan, first=first)
        measured = plan.evaluation_steps()
        for past in [known for known in measured if known <= first]:
            channel.report(_report(past))
        try:
            while step < plan.total_steps:
                step += 1
                time.sleep(self.seconds_per_step)
                self.trained.append((plan.log_dir.name, step))
                note.write(step)
                channel.progress(step)
                if step in measured:
                    stop = channel.report(_report(step)).stop
                    self._save(plan.checkpoint_dir, step)
                    if stop:
                        return Done(state="stopped", step=step, first_step=first)
                if plan.trunk is not None and step in plan.trunk.checkpoint_steps:
                    self._save(plan.trunk.folder, step)
        except ArithmeticError as error:
            return Done(state="diverged", step=step, first_step=first, reason=str(error))
        weights = plan.checkpoint_dir / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"weights")
        result = {"metrics": {"valid_accuracy": 90.0}, "weights": str(weights)}
        return Done(state="complete", step=step, first_step=first, result=result)

    def _save(self, folder: Path, step: int) -> None:
        save_state(folder, step, size=self.size)


def save_state(folder: Path, step: int, *, size: int = 100) -> None:
    """A checkpoint, which appears whole or not at all."""
    target = checkpoint_path(folder, step=step)
    if target.exists():
        return
    draft = folder / f".draft-{time.monotonic_ns()}"
    draft.mkdir(parents=True)
    (draft / "state.pt").write_bytes(b"s" * size)
    draft.rename(target)


def newest_step(plan: TrainPlan) -> int:
    """Where a run starts: at its own newest checkpoint, or at the highest one of its trunk."""
    own = [checkpoint_step(path) for path in checkpoint_paths(plan.checkpoint_dir)]
    shared = plan.trunk and [
        step
        for path in checkpoint_paths(plan.trunk.folder)
        if (step := checkpoint_step(path)) in plan.trunk.checkpoint_steps
    ]
    return max([0, *own, *(shared or [])])


def _report(step: int) -> Report:
    metrics = {"lr": 0.1, "valid_loss": 1 / step}
    return Report(step=step, total_steps=TOTAL, metrics=metrics, seconds=0.0)
