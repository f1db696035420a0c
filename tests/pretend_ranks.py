"""A group runner whose ranks only count steps, but keep and find checkpoints as real ones do."""

import threading
import time
from collections.abc import Callable, Iterator
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
from knee_tune.workers.protocol import Decision, Done, Failure, Outcome, Report

TOTAL, EVERY = 100, 10

What = Callable[[int], None]
"""Called with every step that is trained; what it raises ends the run."""


class Died(Exception):
    """The group's end."""

    def __init__(self, kind: str = "signal") -> None:
        self.failure = Failure.model_validate({"kind": kind, "rank": 1, "message": f"died: {kind}"})


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


class PretendRanks:
    """Trains a plan by counting. ``faults`` are what happens to the 1st, 2nd, ... attempt."""

    def __init__(self, *faults: What | None, seconds_per_step: float = 0.0, size: int = 100):
        self.faults: Iterator[What | None] = iter(faults)
        self.seconds_per_step, self.size = seconds_per_step, size
        self.trained: list[tuple[str, int]] = []
        """The name and the step, of every step of any run."""
        self._choosing = threading.Lock()

    def run(
        self,
        plan: Plan,
        *,
        on_report: Callable[[Report], Decision],
        on_line: Callable[[str], None],
        on_progress: Callable[[int], None],
    ) -> Outcome:
        assert isinstance(plan, TrainPlan)
        with self._choosing:
            fault = next(self.faults, None) or (lambda step: None)
        first = step = newest_step(plan)
        note = StepNote(plan, first=first)
        measured = plan.evaluation_steps()
        for past in [known for known in measured if known <= first]:
            on_report(_report(past))
        try:
            while step < plan.total_steps:
                step += 1
                time.sleep(self.seconds_per_step)
                self.trained.append((plan.log_dir.name, step))
                note.write(step)
                on_progress(step)
                fault(step)
                if step in measured:
                    stop = on_report(_report(step)).stop
                    self._save(plan.checkpoint_dir, step)
                    if stop:
                        return Done(state="stopped", step=step, first_step=first)
                if plan.trunk is not None and step in plan.trunk.checkpoint_steps:
                    self._save(plan.trunk.folder, step)
        except Died as death:
            return death.failure
        except ArithmeticError as error:
            return Done(state="diverged", step=step, first_step=first, reason=str(error))
        weights = plan.checkpoint_dir / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"weights")
        result = {"metrics": {"valid_accuracy": 90.0}, "weights": str(weights)}
        return Done(state="complete", step=step, first_step=first, result=result)

    def _save(self, folder: Path, step: int) -> None:
        save_state(folder, step, size=self.size)

    def close(self) -> None:
        """There is nothing to end."""


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
