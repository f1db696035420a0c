"""Time per step of our loop against fairseq's Trainer, side by side in one process.

    python -m benchmarks.fairseq_trainer

Same task, batches, weights, optimizer and clipping; the two take turns in rounds of a few steps,
so that other load hits both. Prints medians over the rounds, and the median of the per-round
ratios (ours / Trainer: below 1 is faster).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from knee_tune.plans.plan import TrainPlan
from knee_tune.schedules import Constant
from knee_tune.tasks.translation.recipe import TranslationRecipe
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.training.single import SingleModel
from knee_tune.workers.group import Group

LR = 1e-3
SIZES: dict[str, dict[str, Any]] = {
    "tiny (1+1 layers of 32)": {
        "tokens_per_step": 500,
        "model": {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "embed_dim": 32,
            "ffn_dim": 64,
            "heads": 2,
        },
    },
    "demo (2+2 layers of 64)": {
        "tokens_per_step": 1000,
        "model": {
            "encoder_layers": 2,
            "decoder_layers": 2,
            "embed_dim": 64,
            "ffn_dim": 128,
            "heads": 4,
        },
    },
    "small (3+3 layers of 256)": {
        "tokens_per_step": 1000,
        "model": {
            "encoder_layers": 3,
            "decoder_layers": 3,
            "embed_dim": 256,
            "ffn_dim": 512,
            "heads": 4,
        },
    },
}


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="steps of each side per round")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    group = Group(device=torch.device(options.device))
    print(f"{'model':28}{'ours':>10}{'Trainer':>10}{'ratio':>8}{'quartiles':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in SIZES.items():
            ours, fairseqs = _contenders(recipe, group, Path(folder))
            for step in (ours, fairseqs):
                _seconds(step, options.steps, group)
            rounds = [
                _one_round(ours, fairseqs, options.steps, group, swap=bool(number % 2))
                for number in range(options.rounds)
            ]
            ratios = sorted(mine / theirs for mine, theirs in rounds)
            low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
            mine, theirs = (1000 * median(side) for side in zip(*rounds, strict=True))
            print(
                f"{name:28}{mine:7.1f} ms{theirs:7.1f} ms{median(ratios):8.3f}"
                f"{f'{low:.3f}-{high:.3f}':>16}",
                flush=True,
            )


def _contenders(
    changes: dict[str, Any], group: Group, folder: Path
) -> tuple[Callable[[], None], Callable[[], None]]:
    """One step of ours, one step of fairseq's."""
    recipe = {"data": "demo.de-en", **changes}
    ours, fairseqs = (
        TranslationTask(TranslationRecipe.model_validate(recipe), data_dir=folder, seed=1)
        for _ in range(2)
    )
    from benchmarks.fairseq_reference import Reference  # after the task: it quietens fairseq

    plan = TrainPlan(
        task="iwslt",
        recipe=recipe,
        seed=1,
        data_dir=folder,
        log_dir=folder,
        schedule=Constant(seed_lr=LR, total_steps=10**6),
        steps_per_evaluation=10**6,
        checkpoint_dir=folder / "none",
    )
    run = SingleModel(ours, plan, group)
    steps = count(1)
    model = fairseqs.build_model().to(group.device)
    model.load_state_dict(run.model.state_dict())
    reference = Reference(fairseqs, model, group, lr=LR)

    def step() -> None:
        run.update(next(steps))

    return step, reference.step


def _one_round(
    ours: Callable[[], None],
    fairseqs: Callable[[], None],
    steps: int,
    group: Group,
    *,
    swap: bool,
) -> tuple[float, float]:
    """Seconds per step of ours and of fairseq's; who goes first alternates."""
    if swap:
        theirs = _seconds(fairseqs, steps, group)
        return _seconds(ours, steps, group), theirs
    return _seconds(ours, steps, group), _seconds(fairseqs, steps, group)


def _seconds(step: Callable[[], None], steps: int, group: Group) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if group.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    main()
