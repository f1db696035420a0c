"""Replicas trained as one batched model against the same loop one by one, on the same device.

    python -m benchmarks.fused [--device cuda --processes 1]

Digits' own recipe, whole runs with their evaluations, checkpoints and weights files. Both ways take
turns; as many processes as cores, which start every round together. Replica-steps are steps times
replicas; with trunks, those that were trained or shared.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.device import device_name
from knee_tune.config.recipe import Recipe
from knee_tune.plans.plan import Placement, Replica, TaskFacts, TaskOrder, TrainPlan
from knee_tune.plans.planner import knee_schedule, train_plan
from knee_tune.tasks.registry import task_entry

if TYPE_CHECKING:
    from knee_tune.tasks.base import Task

SEED_LRS = tuple(0.005 * 1.5**i for i in range(9))
FRACTIONS = (*(i / 10 for i in range(10)), 0.95)
SIZES = (1, 8, 64, 512)
SAMPLE = 4
"""Replicas of a process that are trained one by one."""

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one process trains in a round, in both ways."""

    replicas: tuple[Replica, ...]
    sample: tuple[Replica, ...]
    """Of them, those that are trained one by one: their rate is the rate of all."""
    epochs: int
    device: Device


def digits(epochs: int) -> tuple[Recipe, TaskFacts]:
    """The recipe at another budget."""
    recipe = task_entry("digits").recipe_type().model_validate({"epochs": epochs})
    return recipe, TaskFacts(
        steps_per_epoch=50, data_fingerprint="", parameters=0, examples={}, unfusable=""
    )


def replica(epochs: int, *, seed: int, seed_lr: float, explore_fraction: float) -> Replica:
    """One replica of the digits task."""
    recipe, facts = digits(epochs)
    schedule = knee_schedule(recipe, facts, seed_lr=seed_lr, explore_fraction=explore_fraction)
    return Replica(seed=seed, schedule=schedule)


def plan(folder: Path, load: Load, replicas: Sequence[Replica], *, fused: bool) -> TrainPlan:
    """The order for these replicas together, or for the first of them alone."""
    recipe, facts = digits(load.epochs)
    order = TaskOrder(
        task="digits",
        recipe=recipe.model_dump(mode="json"),
        seed=replicas[0].seed,
        data_dir=folder,
        placement=Placement(device=load.device),
        log_dir=folder,
    )
    return train_plan(
        order,
        recipe,
        facts,
        schedule=replicas[0].schedule,
        replicas=replicas if fused else (),
        checkpoint_dir=folder / "run",
    )


def train(data: "Task[Any]", load: Load, replicas: Sequence[Replica], *, fused: bool) -> float:
    """Seconds that one run takes from its first step to its weights; its data is there already."""
    import torch

    from knee_tune.jobs import task_run
    from knee_tune.workers.group import Group
    from knee_tune.workers.protocol import Channel, Decision, Report

    class Nobody(Channel):
        def report(self, report: Report) -> Decision:
            return Decision(stop=False)

        def progress(self, step: int) -> None: ...

        def line(self, text: str) -> None: ...

    with tempfile.TemporaryDirectory() as name:
        order = plan(Path(name), load, replicas, fused=fused)
        task = data.with_seed(order.seed)
        group = Group(device=torch.device(load.device))
        began = time.perf_counter()
        task_run(task, order, group, Nobody()).run()
        return time.perf_counter() - began


def work(load: Load, rounds: int, together: Barrier, answers: Any) -> None:
    """One process: seconds per independent replica-step, fused and one by one, of every round."""
    import torch

    torch.set_num_threads(1)
    recipe, _ = digits(load.epochs)
    data = task_entry("digits").build(recipe.model_dump(), data_dir=Path(), seed=0)
    data.describe()
    first = replace(load, epochs=1)
    train(data, first, load.replicas[:2], fused=True)
    train(data, first, load.sample[:1], fused=False)
    seconds = []
    for _ in range(rounds):
        together.wait()
        fused = train(data, load, load.replicas, fused=True)
        together.wait()
        alone = sum(train(data, load, [each], fused=False) for each in load.sample)
        steps = 50 * load.epochs
        seconds.append((fused / (steps * len(load.replicas)), alone / (steps * len(load.sample))))
    if load.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answers.put((seconds, peak))


def measure(loads: Sequence[Load], rounds: int) -> tuple[float, float, float]:
    """Replica-steps per second of all processes together: fused, one by one; peak GiB of one."""
    context = multiprocessing.get_context("spawn")
    together, answers = context.Barrier(len(loads)), context.Queue()
    processes = [
        context.Process(target=work, args=(load, rounds, together, answers)) for load in loads
    ]
    for process in processes:
        process.start()
    results = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    fused = [sum(1 / seconds[i][0] for seconds, _ in results) for i in range(rounds)]
    alone = [sum(1 / seconds[i][1] for seconds, _ in results) for i in range(rounds)]
    return median(fused), median(alone), max(peak for _, peak in results)


def evenly(
    replicas: Sequence[Replica], *, processes: int, epochs: int, device: Device
) -> list[Load]:
    """The replicas spread over the processes as over ranks, by random seed."""
    loads = []
    for index in range(processes):
        mine = [each for each in replicas if each.seed % processes == index] or [replicas[0]]
        some = mine[:: max(1, len(mine) // SAMPLE)][:SAMPLE]
        loads.append(Load(replicas=tuple(mine), sample=tuple(some), epochs=epochs, device=device))
    return loads


def main() -> None:
    """Print a line for every size."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.fused")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=20, help="of the design with trunks")
    options = parser.parse_args()
    common = {"epochs": options.epochs, "device": options.device}
    print(f"{options.processes} processes, {options.epochs} epochs, {options.rounds} rounds")
    print(f"on {device_name(options.device)}")
    print("replicas  fused/s  one by one/s  ratio  peak GiB of a process")
    for size in SIZES:
        replicas = [
            replica(options.epochs, seed=i, seed_lr=0.05, explore_fraction=0.5) for i in range(size)
        ]
        processes = min(options.processes, size)
        loads = evenly(replicas, processes=processes, **common)
        _show(str(size), measure(loads, options.rounds))
    design = [
        replica(options.epochs, seed=seed, seed_lr=seed_lr, explore_fraction=fraction)
        for seed in range(options.seeds)
        for seed_lr in SEED_LRS
        for fraction in FRACTIONS
    ]
    loads = evenly(design, processes=options.processes, **common)
    _show(f"Table 16, {len(design)} with trunks", measure(loads, options.rounds))


def _show(name: str, measured: tuple[float, float, float]) -> None:
    fused, alone, peak = measured
    print(f"{name:>8}  {fused:,.0f}  {alone:,.0f}  {fused / alone:.2f}  {peak:.2f}", flush=True)


if __name__ == "__main__":
    main()
