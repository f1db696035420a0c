"""Training steps per second of our ``gpt`` task against nanoGPT's own script.

    python -m benchmarks.language --nanogpt DIR [--preset small] [--device cuda] [--compile]

``DIR`` is a checkout of nanoGPT; it is only read. Both take turns, every time in fresh processes,
on the same text, at the same sizes, batches and optimizer, with an evaluation as often and of as
many windows: ours as a study starts them, with checkpoints, and the script as it is. From the first
evaluation after a training step to the last one is what counts. On a CPU both have the same core
and one thread. On a GPU both train in bf16, nanoGPT compiled as it comes, and the operations of the
model (those of its matrix products) are put beside the device's own bf16 product of two large
matrices.
"""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.device import device_name, matmul_peak
from benchmarks.side_by_side import in_turns, shown, steps_per_second, train_in_slots
from knee_tune.commands.home import Home
from knee_tune.commands.opened import resolve_asked
from knee_tune.commands.workers import GroupOptions, open_workers
from knee_tune.tasks.language.recipe import BYTES, GptRecipe
from knee_tune.tasks.language.text import find_prepared, map_text
from knee_tune.tasks.registry import task_entry

if TYPE_CHECKING:
    from knee_tune.tasks.language.task import GptTask

TASK = "gpt"
SCRIPT = ("train.py", "model.py", "configurator.py")
"""What its training consists of."""


def copy_of(checkout: Path, into: Path, text: dict[str, bytes]) -> Path:
    """The script in a folder of its own, with the text as its data set ``ours``."""
    for name in SCRIPT:
        shutil.copy(checkout / name, into / name)
    data = into / "data" / "ours"
    data.mkdir(parents=True)
    for ours, theirs in {"train": "train.bin", "valid": "val.bin"}.items():
        np.frombuffer(text[ours], dtype=np.uint8).astype(np.uint16).tofile(data / theirs)
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": BYTES}))
    return into


def arguments(recipe: GptRecipe, *, device: str, valid_bytes: int) -> list[str]:
    """The script's arguments for the same training."""
    steps, every = recipe.epochs * (recipe.steps_per_epoch or 1), recipe.steps_per_epoch
    size, micro_batch = recipe.model, recipe.batch_size // recipe.accumulate
    windows = valid_bytes // size.context
    settings: dict[str, Any] = {
        "dataset": "ours",
        "device": device,
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "compile": device == "cuda",
        "batch_size": micro_batch,
        "gradient_accumulation_steps": recipe.accumulate,
        "block_size": size.context,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_embd": size.width,
        "dropout": size.dropout,
        "bias": True,
        "learning_rate": recipe.seed_lr,
        "weight_decay": recipe.optimizer.weight_decay,
        "beta1": recipe.optimizer.betas[0],
        "beta2": recipe.optimizer.betas[1],
        "grad_clip": recipe.clip_norm or 0.0,
        "warmup_iters": recipe.warmup_steps,
        "max_iters": steps,
        "lr_decay_iters": steps,
        "eval_interval": every,
        # It measures so many batches of both splits.
        "eval_iters": max(1, round(windows / (2 * micro_batch))),
        "log_interval": 10,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def theirs(folder: Path, given: list[str]) -> float:
    """Run the script; steps per second from its second evaluation to its last."""
    seen: list[tuple[int, float]] = []
    process = subprocess.Popen(
        [sys.executable, "train.py", *given],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None, "it is a pipe"
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step "):
            seen.append((int(line.split()[1].rstrip(":")), time.monotonic()))
    if process.wait():
        raise SystemExit("nanoGPT's script failed:\n" + "".join(lines[-20:]))
    (first, began), (last, ended) = seen[1], seen[-1]
    return (last - first) / (ended - began)


def flops_per_step(task: "GptTask") -> float:
    """Operations of one step, forward and backward; a multiplication and an addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, context = task.build_model(), task.recipe.model.context
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, context, dtype=torch.long)).sum().backward()
    return float(counter.get_total_flops()) * task.recipe.batch_size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; without it: skipped")
    parser.add_argument("--preset", choices=("demo", "small", "nanogpt", "gpt2"), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure --compile too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="from one evaluation to the next")
    parser.add_argument("--evaluations", type=int, default=4, help="of every run")
    chosen = parser.parse_args()
    if chosen.nanogpt is None:
        print("skipped: --nanogpt DIR says where a checkout of nanoGPT lies")
        return
    if missing := [name for name in SCRIPT if not (chosen.nanogpt / name).is_file()]:
        parser.error(f"--nanogpt {chosen.nanogpt}: it has no {', '.join(missing)}")
    if chosen.evaluations < 2:
        parser.error("--evaluations: what comes before the first does not count, so 2 or more")

    spec = resolve_asked(
        task=TASK,
        preset=chosen.preset,
        settings=(
            f"recipe.epochs={chosen.evaluations}",
            f"recipe.steps_per_epoch={chosen.steps}",
            f"recipe.warmup_steps={min(100, chosen.steps)}",
        ),
    )
    if chosen.device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home")
        task: Any = task_entry(TASK).build(spec.recipe, data_dir=home.data, seed=1)
        text = {
            split: bytes(found.numpy())
            for split, found in map_text(*find_prepared(home.data, task.recipe.data)).items()
        }
        script = Path(folder) / "nanogpt"
        script.mkdir()
        copy_of(chosen.nanogpt, script, text)
        measures = min(len(text["valid"]), task.recipe.valid_bytes or sys.maxsize)
        given = arguments(task.recipe, device=chosen.device, valid_bytes=measures)
        ways = {"ours": GroupOptions(device=chosen.device, trunk_cache=0)}
        if chosen.compile:
            ways["ours, compiled"] = GroupOptions(device=chosen.device, trunk_cache=0, compile=True)

        def measured(options: GroupOptions) -> Callable[[int], float]:
            def one_round(number: int) -> float:
                with open_workers(home, spec, options) as workers:
                    return steps_per_second(train_in_slots(workers, seed=number)[0])

            return one_round

        print(f"{TASK}, preset {chosen.preset}, on {device_name(chosen.device)}")
        results = in_turns(
            {name: measured(options) for name, options in ways.items()},
            lambda _: theirs(script, given),
            rounds=chosen.rounds,
            unit="steps/s",
        )
        tokens = task.recipe.batch_size * task.recipe.model.context
        for name, (rate, ratios) in results.items():
            print(
                f"{name}: {rate:,.1f} steps/s, {rate * tokens:,.0f} tokens/s, "
                f"{shown(ratios)} times nanoGPT's script"
            )
            if chosen.device == "cuda":
                share = rate * flops_per_step(task) / matmul_peak()
                print(f"  {share:.1%} of the device's bf16 matrix product")


if __name__ == "__main__":
    main()
