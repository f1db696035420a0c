"""What a training step costs with Cutoff, against the plain step, side by side in one process.

    python -m benchmarks.cutoff [--from DIR] [--threads 1]

Same task, batches, weights and optimizer. All take turns in every round, so that other load hits
all of them, and on a CPU it is the process's own time that counts. ``doubled`` is the doubled batch
without any consistency. Prints the median step of the plain one, and the median over the rounds of
each one's ratio to it, with quartiles. ``--from``: a folder with a corpus (text cut by BPE, and the
codes beside it) for the sizes whose vocabulary is a real one.
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
from knee_tune.tasks.translation.prepare import prepare
from knee_tune.tasks.translation.prepared import find_prepared
from knee_tune.tasks.translation.recipe import TranslationRecipe
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.training.single import SingleModel
from knee_tune.workers.group import Group

LR = 1e-4
LOSSES: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "doubled": {"consistency_weight": 0},
    "reference": {"consistency": "reference"},
    "exact": {"consistency": "exact"},
    "feature": {"kind": "feature"},
}
"""Of them the first is what the others are compared with."""


def size(layers: int, embed_dim: int, ffn_dim: int) -> dict[str, int]:
    """A Transformer of this size."""
    return {
        "encoder_layers": layers,
        "decoder_layers": layers,
        "embed_dim": embed_dim,
        "ffn_dim": ffn_dim,
        "heads": 4,
    }


DEMO = {
    "demo (2+2 layers of 64)": {"tokens_per_step": 1000, "model": size(2, 64, 128)},
    "small (3+3 layers of 256)": {"tokens_per_step": 1000, "model": size(3, 256, 512)},
}
GIVEN = {
    "small (2+2 layers of 128)": {"tokens_per_step": 1000, "model": size(2, 128, 256)},
    "transformer_iwslt_de_en": {"tokens_per_step": 2048, "model": size(6, 512, 1024)},
    "Transformer base, 4,000 tokens": {"tokens_per_step": 4000, "model": size(6, 512, 2048)},
}


def contender(
    data: Path, name: str, recipe: dict[str, Any], cutoff: dict[str, Any] | None, group: Group
) -> Callable[[], None]:
    """One training step of this recipe."""
    settings = {"data": name, **recipe, **({} if cutoff is None else {"cutoff": cutoff})}
    task = TranslationTask(TranslationRecipe.model_validate(settings), data_dir=data, seed=1)
    plan = TrainPlan(
        task="iwslt",
        recipe=settings,
        seed=1,
        data_dir=data,
        log_dir=data,
        schedule=Constant(seed_lr=LR, total_steps=10**6),
        steps_per_evaluation=10**6,
        checkpoint_dir=data / "none",
    )
    run, steps = SingleModel(task, plan, group), count(1)
    return lambda: run.update(next(steps))


def seconds(step: Callable[[], None], steps: int, group: Group) -> float:
    """Take some steps; seconds of one."""
    on_gpu = group.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    for _ in range(steps):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - began) / steps


def measure(
    data: Path, name: str, recipe: dict[str, Any], group: Group, *, rounds: int, steps: int
) -> None:
    """Print the line of one size."""
    sides = {loss: contender(data, name, recipe, LOSSES[loss], group) for loss in LOSSES}
    for step in sides.values():
        seconds(step, 1, group)
    taken = [
        {loss: seconds(step, steps, group) for loss, step in sides.items()} for _ in range(rounds)
    ]
    cells = []
    for loss in list(LOSSES)[1:]:
        ratios = sorted(each[loss] / each["plain"] for each in taken)
        low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        cells.append(f"{median(ratios):6.2f} ({low:.2f}-{high:.2f})")
    print(f"{1000 * median(each['plain'] for each in taken):8.1f} ms", *cells, flush=True)


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="of each side per round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--from", dest="corpus", type=Path, help="folder with a corpus")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    group = Group(device=torch.device(asked.device))
    print(f"{'model':28}{'types':>7}{'plain':>11}", *(f"{loss:>18}" for loss in list(LOSSES)[1:]))
    with tempfile.TemporaryDirectory() as folder:
        sets = [("demo.de-en", DEMO)]
        if asked.corpus:
            prepare(data_root=Path(folder), from_path=asked.corpus, name="given", kind="bpe")
            sets.append(("given", GIVEN))
        for name, sizes in sets:
            for model, recipe in sizes.items():
                _, manifest = find_prepared(Path(folder), name)
                print(f"{model:28}{manifest.vocabulary['en']:7,}", end=" ", flush=True)
                measure(Path(folder), name, recipe, group, rounds=asked.rounds, steps=asked.steps)


if __name__ == "__main__":
    main()
