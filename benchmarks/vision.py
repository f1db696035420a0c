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
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.device import CORES, device_name, flops_per_image, matmul_peak
from benchmarks.side_by_side import in_turns, shown, steps_per_second, train_in_slots
from benchmarks.vision_data import TASK, splits, write_noise
from benchmarks.vision_reference import Epoch, PlainRun, Split, train
from knee_tune.commands.home import Home
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.workers import GroupOptions, Workers, open_workers
from knee_tune.config.recipe import Recipe
from knee_tune.config.study import ResolvedStudy
from knee_tune.tasks.registry import task_entry


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of one run."""

    rate: float
    """Images per second."""
    accuracy: float
    """On the validation images, in percent."""


def ours(workers: Workers, *, seed: int) -> list[Trained]:
    """A run in every slot, all at the same time: the first with ``seed``, each with one more."""
    batch_size = workers.recipe.model_dump()["batch_size"]
    return [
        Trained(
            rate=steps_per_second(reports) * batch_size,
            accuracy=reports[-1].metrics["valid_accuracy"],
        )
        for reports in train_in_slots(workers, seed=seed)
    ]


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


def compare_accuracy(
    asked: ResolvedStudy[Recipe],
    home: Home,
    run: PlainRun,
    data: tuple[Split, Split],
    seeds: int,
) -> None:
    """What both ways reach with the same number of random seeds."""
    together = seeds if run.device == "cuda" else 1
    options: dict[str, Any] = {"device": run.device, "trunk_cache": 0}
    options |= {"slots": together, "trials_per_gpu": together}
    with open_workers(home, asked, GroupOptions(**options)) as workers:
        found = [
            each.accuracy for seed in range(0, seeds, together) for each in ours(workers, seed=seed)
        ]
    loaders = max(1, CORES // together)
    runs = [replace(run, seed=seed, workers=loaders) for seed in range(seeds)]
    with ThreadPoolExecutor(together) as pool:
        theirs = [each.accuracy for each in pool.map(lambda each: plain(each, *data), runs)]
    print(f"accuracy after {run.epochs} epochs: {shown(found)}; plain {shown(theirs)}")
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

    def asked(epochs: int) -> ResolvedStudy[Recipe]:
        return resolve_asked(task=TASK, preset=chosen.preset, settings=(f"recipe.epochs={epochs}",))

    spec = asked(chosen.epochs)
    recipe = spec.typed_recipe
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
                with open_workers(home, spec, options) as workers:
                    return sum(each.rate for each in ours(workers, seed=number))

            return one_round

        results = (
            in_turns(
                {name: measured(options) for name, options in ways(chosen).items()},
                lambda number: plain(run, train_split, valid_split).rate,
                rounds=chosen.rounds,
                unit="images/s",
            )
            if chosen.rounds
            else {}
        )
        flops = flops_per_image(task)
        for name, (rate, ratios) in results.items():
            print(f"{name}: {rate:,.0f} images/s, {shown(ratios)} times the plain loop")
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


if __name__ == "__main__":
    main()
