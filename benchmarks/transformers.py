"""fairseq's Transformer and ours at equal size: parameters, perplexity after training, step time.

    python -m benchmarks.transformers [--seeds 3] [--preset demo]

Both train the preset of ``iwslt`` at its own seed LR and half of its budget to explore, one rank
and one thread, on the same batches, and validate at the end. Of a step it is the process's own time
that counts; the two take turns, seed by seed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from knee_tune.commands.opened import resolve_asked
from knee_tune.plans.plan import TrainPlan
from knee_tune.schedules import Knee
from knee_tune.tasks.seeding import seeded
from knee_tune.tasks.translation.recipe import TranslationRecipe
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.training.single import SingleModel
from knee_tune.workers.group import Group


def trained(recipe: dict[str, Any], seed: int, folder: Path) -> tuple[int, float, float, float]:
    """Parameters, validation perplexity and BLEU, milliseconds of a step."""
    settings = TranslationRecipe.model_validate(recipe)
    task, group = TranslationTask(settings, data_dir=folder, seed=seed), Group()
    steps = settings.epochs * task.steps_per_epoch(group)
    plan = TrainPlan(
        task="iwslt",
        recipe=recipe,
        seed=seed,
        data_dir=folder,
        log_dir=folder,
        schedule=Knee(seed_lr=settings.seed_lr, total_steps=steps, explore_steps=steps // 2),
        steps_per_evaluation=steps,
        checkpoint_dir=folder / "none",
    )
    with seeded(seed):
        run = SingleModel(task, plan, group)
        began = time.process_time()
        for step in range(1, steps + 1):
            run.update(step)
        taken = time.process_time() - began
    run.model.eval()
    with torch.no_grad():
        found = task.evaluate(run.model, group, split="valid", final=True)
    size = sum(weight.numel() for weight in run.model.parameters())
    return size, found["ppl"], found["bleu"], 1000 * taken / steps


def main() -> None:
    """Train both with every seed and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="seed")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--data", type=Path, help="folder with the prepared set, if it is no demo")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    settings = resolve_asked(task="iwslt", preset=asked.preset).recipe
    print(f"{'seed':>4}  {'family':8}{'parameters':>12}{'valid ppl':>11}{'BLEU':>7}{'ms/step':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.first, asked.first + asked.seeds):
            for family in ("fairseq", "torch"):
                chosen = settings | {"model": settings["model"] | {"family": family}}
                size, ppl, bleu, step = trained(chosen, seed, asked.data or Path(folder))
                line = f"{size:12,}{ppl:11.3f}{bleu:7.1f}{step:9.1f}"
                print(f"{seed:4}  {family:8}{line}", flush=True)


if __name__ == "__main__":
    main()
