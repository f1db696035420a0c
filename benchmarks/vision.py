"""Training images per second of our CIFAR-10 task against a plain loop on the same device.

    python -m benchmarks.vision [--device cuda] [--preset tiny|fast] [--data DIR]

Both take turns, every time in fresh processes: our runs as a study starts them, with evaluations
and checkpoints, and the loop of ``vision_reference`` with as many threads and loader workers as
there are cores. The first epoch of each (start, caches, compiler) does not count. On a CPU ours are
one run on every core, as ``--concurrency`` trains them, and one run on all cores, as ``--nproc``
does; on a GPU one run, or ``--trials-per-gpu`` of them. There the operations of the network (those
of its convolutions and matrix products) are also put beside the device's own bf16 product of two
large matrices. Without ``--data``, a folder with the prepared set cifar10, the images are noise.
``--accuracy SEEDS`` compares what both ways reach in ``--accuracy-epochs``; on a GPU all seeds
train at the same time, which changes how long it takes and nothing else.

It wants a machine of its own: beside other work the plain loop's threads wait for one another.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.device import CORES, device_name, flops_per_image, matmul_peak
from benchmarks.vision_data import TASK, splits, write_noise
from benchmarks.vision_reference import Epoch, PlainRun, Split, train
from knee_tune.commands.home import Home
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.workers import GroupOptions, Workers, open_workers
from knee_tune.config.recipe import Recipe
from knee_tune.config.study import StudySpec
from knee_tune.plans.planner import budget_steps
from knee_tune.schedules import Cosine
from knee_tune.stats.estimates import mean_estimate
from knee_tune.tasks.registry import task_entry
from knee_tune.workers.protocol import Callbacks, Decision, Done, Report


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of one run."""

    rate: float
    """Images per second."""
    accuracy: float
    """On the validation images, in percent."""


def ours(workers: Workers, *, seed: int) -> list[Trained]:
    """A run in every slot, all at the same time: the first with ``seed``, each with one more."""
    facts, recipe = workers.facts, workers.recipe
    schedule = Cosine(seed_lr=recipe.seed_lr, total_steps=budget_steps(recipe, facts))

    def slot(number: int) -> Trained:
        reports: list[Report] = []

        def told(report: Report) -> Decision:
            reports.append(report)
            return Decision(stop=False)

        plan = workers.train_plan(
            schedule, log_key=f"slot-{number}", seed=seed + number, slot=number
        )
        outcome = workers.runner.run(plan, Callbacks(on_report=told, on_line=print))
        shutil.rmtree(plan.checkpoint_dir, ignore_errors=True)
        if not isinstance(outcome, Done):
            raise SystemExit(outcome.traceback or outcome.message)
        first, last = reports[0], reports[-1]
        images = (last.step - first.step) * recipe.model_dump()["batch_size"]
        return Trained(
            rate=images / (last.seconds - first.seconds), accuracy=last.metrics["valid_accuracy"]
        )

    slots = workers.options.slots
    with ThreadPoolExecutor(slots) as pool:
        return list(pool.map(slot, range(slots)))


def plain(run: PlainRun, train_split: Split, valid_split: Split) -> Trained:
    """The same of the plain loop, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        epochs = pool.submit(_plain, run, train_split, valid_split).result()
    batches = len(train_split.labels) // run.batch_size * (len(epochs) - 1)
    seconds = epochs[-1].seconds - epochs[0].seconds
    return Trained(rate=batches * run.batch_size / seconds, accuracy=epochs[-1].accuracy)


def _plain(run: PlainRun, train_split: Split, valid_split: Split) -> list[Epoch]:
    import torch

    torch.set_num_threads(CORES)
    return list(train(run, train_split, valid_split))


def ways(chosen: argparse.Namespace) -> dict[str, GroupOptions]:
    """How ours are trained; the first one is the figure that counts."""
    common: dict[str, Any] = {"device": chosen.device, "trunk_cache": 0}
    if chosen.device == "cpu":
        return {
            f"{CORES} runs, one on each core": GroupOptions(slots=CORES, **common),
            f"1 run on {CORES} ranks": GroupOptions(nproc=CORES, **common),
        }
    found = {"1 run": GroupOptions(**common)}
    if chosen.compile:
        found["1 run, compiled"] = GroupOptions(compile=True, **common)
    if (many := chosen.trials_per_gpu) > 1:
        found[f"{many} runs on one GPU"] = GroupOptions(slots=many, trials_per_gpu=many, **common)
    return found


def speed(
    each: dict[str, Callable[[int], float]], reference: Callable[[int], float], rounds: int
) -> dict[str, tuple[float, list[float]]]:
    """For every way its median rate and its ratio to the reference, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in each}
    theirs = []
    for number in range(rounds):
        theirs.append(reference(number))
        print(f"  round {number + 1}: plain {theirs[-1]:,.0f}", end="", flush=True)
        for name, measure in each.items():
            rates[name].append(measure(number))
            print(f", {name} {rates[name][-1]:,.0f}", end="", flush=True)
        print()
    print(f"plain loop: {median(theirs):,.0f} images/s")
    return {
        name: (median(rate), [a / b for a, b in zip(rate, theirs, strict=True)])
        for name, rate in rates.items()
    }


def compare_accuracy(
    asked: tuple[StudySpec, Recipe],
    home: Home,
    run: PlainRun,
    data: tuple[Split, Split],
    seeds: int,
) -> None:
    """What both ways reach with the same number of random seeds."""
    together = seeds if run.device == "cuda" else 1
    options: dict[str, Any] = {"device": run.device, "trunk_cache": 0}
    options |= {"slots": together, "trials_per_gpu": together}
    with open_workers(home, *asked, GroupOptions(**options)) as workers:
        found = [
            each.accuracy for seed in range(0, seeds, together) for each in ours(workers, seed=seed)
        ]
    loaders = max(1, CORES // together)
    runs = [replace(run, seed=seed, workers=loaders) for seed in range(seeds)]
    with ThreadPoolExecutor(together) as pool:
        theirs = [each.accuracy for each in pool.map(lambda each: plain(each, *data), runs)]
    print(f"accuracy after {run.epochs} epochs: {_shown(found)}; plain {_shown(theirs)}")
    print(f"  seeds: {_each(found)}; plain {_each(theirs)}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("tiny", "fast"), default="tiny")
    parser.add_argument("--data", type=Path, help="folder with the prepared set cifar10")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of every run")
    parser.add_argument("--compile", action="store_true", help="measure --compile too")
    parser.add_argument("--trials-per-gpu", type=int, default=1)
    parser.add_argument("--accuracy", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--accuracy-epochs", type=int, default=30, metavar="EPOCHS")
    chosen = parser.parse_args()
    if min(chosen.epochs, chosen.accuracy_epochs) < 2:
        parser.error(
            "the first epoch does not count: --epochs and --accuracy-epochs want 2 or more"
        )

    def asked(epochs: int) -> tuple[StudySpec, Recipe]:
        return resolve_asked(task=TASK, preset=chosen.preset, settings=(f"recipe.epochs={epochs}",))

    spec, recipe = asked(chosen.epochs)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.data is None:
            write_noise(Path(folder) / "data")
        os.environ["KNEE_TUNE_DATA"] = str(chosen.data or Path(folder) / "data")
        home = Home(Path(folder))
        task: Any = task_entry(TASK).build(spec.recipe, data_dir=home.data, seed=1)
        train_split, valid_split = splits(task)
        run = PlainRun(
            network=task.recipe.model,
            batch_size=task.recipe.batch_size,
            padding=task.recipe.crop_padding,
            lr=recipe.seed_lr,
            momentum=recipe.optimizer.momentum,
            weight_decay=recipe.optimizer.weight_decay,
            epochs=chosen.epochs,
            device=chosen.device,
            workers=CORES,
            seed=1,
        )
        print(f"{TASK}, preset {chosen.preset}, on {device_name(chosen.device)}")
        print(
            f"{len(train_split.labels):,} images of {task.recipe.side} pixels"
            f"{' of noise' if chosen.data is None else ''}, batches of {run.batch_size}, "
            f"{chosen.epochs} epochs, {chosen.rounds} rounds",
            flush=True,
        )

        def measured(options: GroupOptions) -> Callable[[int], float]:
            def one_round(number: int) -> float:
                with open_workers(home, spec, recipe, options) as workers:
                    return sum(each.rate for each in ours(workers, seed=number))

            return one_round

        results = (
            speed(
                {name: measured(options) for name, options in ways(chosen).items()},
                lambda number: plain(run, train_split, valid_split).rate,
                chosen.rounds,
            )
            if chosen.rounds
            else {}
        )
        flops = flops_per_image(task)
        for name, (rate, ratios) in results.items():
            print(f"{name}: {rate:,.0f} images/s, {_shown(ratios)} times the plain loop")
            if chosen.device == "cuda":
                peak = matmul_peak()
                print(
                    f"  {rate * flops / 1e12:.1f} of {peak / 1e12:.0f} Tflop/s "
                    f"of its bf16 matrix product: {rate * flops / peak:.1%}"
                )
        if chosen.accuracy:
            compare_accuracy(
                asked(chosen.accuracy_epochs),
                home,
                replace(run, epochs=chosen.accuracy_epochs),
                (train_split, valid_split),
                chosen.accuracy,
            )


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _shown(values: Sequence[float]) -> str:
    """The mean and its 95 % interval, where there are values enough."""
    mean = mean_estimate(values)
    if mean.low is None:
        return f"{mean.value:.2f}"
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]"


if __name__ == "__main__":
    main()
