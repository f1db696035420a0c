"""Training steps of the paper's ResNet-18 on a GPU: launched, replayed as a graph, and compiled.

    python -m benchmarks.gpu_step

Random images of CIFAR-10's size in bf16, steps alone: no evaluation, no checkpoint. The rate is put
beside the device's own bf16 product of two large matrices; ``start`` is from the model to its fifth
step, with whatever torch and cuDNN have cached on this machine.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.device import device_name, flops_per_image, matmul_peak
from benchmarks.vision_data import TASK, write_noise
from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.schedules import Constant
from knee_tune.tasks.registry import task_entry

STEPS, WINDOWS = 100, 4


@dataclass(frozen=True, kw_only=True)
class Way:
    """How steps are trained."""

    name: str
    batch_size: int = 128
    replay: bool = True
    compile: bool = False


WAYS = (
    Way(name="launched kernel by kernel", replay=False),
    Way(name="one graph per step"),
    Way(name="the same, compiled", compile=True),
    Way(name="one graph, batches of 512", batch_size=512),
)


def measure(way: Way, task: Any, folder: Path) -> tuple[float, float]:
    """Images per second of the best window, and the seconds to the fifth step."""
    import torch

    from knee_tune.training import single
    from knee_tune.training.single import SingleModel
    from knee_tune.workers.group import Group

    plan = TrainPlan(
        task=TASK,
        recipe=task.recipe.model_dump(),
        seed=1,
        data_dir=folder,
        placement=Placement(device="cuda", amp=True, compile=way.compile),
        log_dir=folder,
        schedule=Constant(seed_lr=0.1, total_steps=STEPS * (WINDOWS + 1)),
        steps_per_evaluation=STEPS,
        checkpoint_dir=folder / "run",
    )
    launched = single.LAUNCHED_STEPS
    if not way.replay:
        single.LAUNCHED_STEPS = plan.total_steps
    began = time.perf_counter()
    learner = SingleModel(task, plan, Group(device=torch.device("cuda", 0)))
    for step in range(1, 6):
        learner.update(step)
    torch.cuda.synchronize()
    start, rates = time.perf_counter() - began, []
    for window in range(WINDOWS):
        began = time.perf_counter()
        for step in range(STEPS):
            learner.update(6 + window * STEPS + step)
        torch.cuda.synchronize()
        rates.append(STEPS * way.batch_size / (time.perf_counter() - began))
    single.LAUNCHED_STEPS = launched
    return max(rates), start


def main() -> None:
    """Print a line for every way."""
    import torch

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    peak = matmul_peak()
    print(f"{device_name('cuda')}, torch {torch.__version__}: {peak / 1e12:.0f} Tflop/s in bf16")
    entry = task_entry(TASK)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_noise(folder)
        for way in WAYS:
            recipe = entry.recipe_type().model_validate(
                {"batch_size": way.batch_size, "validation": 1000}
            )
            task: Any = entry.build(recipe.model_dump(), data_dir=folder, seed=1)
            rate, start = measure(way, task, folder)
            share = rate * flops_per_image(task) / peak
            print(
                f"{way.name}: {rate:,.0f} images/s, {1000 * way.batch_size / rate:.2f} ms a step, "
                f"{share:.1%} of that; start {start:.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
