"""transformers' Trainer as a run of knee-tune: branched, killed and pruned, and what it refuses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from knee_tune.plans.plan import ENTRY, DescribePlan
from knee_tune.scripts.imports import installed_imports
from knee_tune.scripts.recipe import JOINED
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import Callbacks, Failure
from tests.integration.runs import done, same
from tests.integration.script_ranks import EVERY, SHARED, Ranks, check_killed_rank, check_pruned

if not (find_spec("transformers") and find_spec("accelerate")):
    pytest.skip("needs the extra hf", allow_module_level=True)

SCRIPT = """\
import random
from pathlib import Path
import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
import knee_tune.hf

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        hidden = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout()
        self.layers = nn.Sequential(*hidden, nn.Linear(8, 1))
    def forward(self, x, labels):
        found = self.layers(x)
        return {{"loss": nn.functional.mse_loss(found, labels), "logits": found}}

def noisy(rows):
    batch = {{name: torch.stack([row[name] for row in rows]) for name in rows[0]}}
    return batch | {{"x": batch["x"] + random.random() * torch.randn(batch["x"].shape)}}

g = torch.Generator().manual_seed(0)
x, y = torch.randn(50, 4, generator=g), torch.randn(50, 1, generator=g)
rows = [{{"x": one, "labels": label}} for one, label in zip(x, y)]
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(rows)
model, optimizers = Net(), (None, None)
given = dict(train_dataset=rows[:38], eval_dataset={{"near": rows[38:44], "far": rows[44:]}})
here = Path(__file__).parent
wanted = dict(output_dir=str(here / "out"), use_cpu=True, max_steps=30)
wanted["per_device_train_batch_size"] = 4
how = dict(minimize="eval_near_loss")
{before}
trainer = Trainer(model, TrainingArguments(**wanted), data_collator=noisy, **given)
{after}
knee_tune.hf.attach(trainer, **how)
trainer.train({train})
raise AssertionError("in a study the script ends with train()")
"""


def written(tmp_path: Path, *, before: str = "", after: str = "", train: str = "") -> Path:
    script = tmp_path / "own.py"
    script.write_text(SCRIPT.format(before=before, after=after, train=train))
    return script


@pytest.fixture(scope="module")
def example(repository: Path) -> Path:
    return repository / "examples" / "huggingface" / "train.py"


@pytest.fixture(scope="module")
def runner(example: Path) -> Iterator[ForkserverRunner]:
    made = ForkserverRunner(ENTRY, preload=("knee_tune.jobs", *installed_imports(example)))
    yield made
    made.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_branch_is_the_uninterrupted_run(
    runner: ForkserverRunner, example: Path, tmp_path: Path, ranks: int
) -> None:
    training = Ranks(runner, example, tmp_path, ranks=ranks, objective="eval_loss")
    alone = done(training.train("alone", explore=SHARED, trunk=False))
    uninterrupted = training.curve
    done(training.train("longer", explore=18))
    branched = done(training.train("branch", explore=SHARED))
    assert (alone.first_step, branched.first_step) == (0, SHARED)
    assert training.curve == uninterrupted
    assert branched.result["metrics"] == alone.result["metrics"]
    assert same(training.weights("branch"), training.weights("alone"))


UNUSUAL = """
wanted |= dict(gradient_accumulation_steps=3, dataloader_num_workers=1, data_seed=7)
wanted |= dict(dataloader_persistent_workers=True)
optimizer = torch.optim.AdamW([
    {"params": model.layers[0].parameters()}, {"params": model.layers[1:].parameters(), "lr": 0.1},
], lr=0.01)
given["optimizers"] = (optimizer, None)
how["serve"] = "serve:load"
wanted |= dict(logging_steps=5, save_strategy="steps", save_steps=4, eval_on_start=True)
"""


def test_accumulated_gradients_and_random_batches_are_exact_too(
    runner: ForkserverRunner, tmp_path: Path
) -> None:
    script = written(tmp_path, before=UNUSUAL)
    training = Ranks(runner, script, tmp_path, ranks=2, objective="eval_near_loss")
    alone = done(training.train("alone", explore=SHARED, trunk=False))
    assert alone.result["serve"] == "serve:load"
    uninterrupted = training.curve
    assert set(uninterrupted[EVERY]) == {"lr", "eval_near_loss", "eval_far_loss"}
    done(training.train("longer", explore=18))
    assert done(training.train("branch", explore=SHARED)).first_step == SHARED
    assert training.curve == uninterrupted
    assert same(training.weights("branch"), training.weights("alone"))
    assert not [*(tmp_path / "out").iterdir()], "in a study Trainer saves nothing"


def test_a_killed_rank_goes_on_and_a_pruned_run_ends(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    training = Ranks(runner, example, tmp_path, ranks=2, objective="eval_loss")
    check_killed_rank(training)
    check_pruned(training)


def test_the_arguments_of_training_are_the_study_s_defaults(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    def joined(script: Path) -> object:
        order = Ranks(runner, script, tmp_path).order("describe")
        return done(runner.run(DescribePlan(**dict(order)), Callbacks())).result[JOINED]

    assert joined(example) == {
        "steps": 200,
        "evaluate_every": 20,
        "objective": "eval_loss",
        "direction": "minimize",
        "seed_lr": 0.003,
        "warmup_steps": 10,
    }
    epochs = (
        'del wanted["max_steps"]; how = dict(maximize="eval_accuracy")\n'
        'wanted |= dict(num_train_epochs=4, eval_strategy="epoch", warmup_steps=0.1)'
    )
    assert joined(written(tmp_path, before=epochs)) == {
        "steps": 40,
        "evaluate_every": 10,
        "objective": "eval_accuracy",
        "direction": "maximize",
        "seed_lr": 5e-5,
        "warmup_steps": 4,
    }


MISTAKES = {
    "eval_dataset=None": {"before": 'given["eval_dataset"] = None'},
    "train_dataset is a stream": {"before": 'given["train_dataset"] = Stream()'},
    "a scheduler in optimizers=": {
        "before": "adam = torch.optim.Adam(model.parameters(), lr=0.1)\n"
        'given["optimizers"] = adam, torch.optim.lr_scheduler.LambdaLR(adam, lambda _: 1.0)'
    },
    "model_init=": {"before": 'model, given["model_init"] = None, Net'},
    "load_best_model_at_end=True": {
        "before": 'wanted |= dict(load_best_model_at_end=True, eval_strategy="steps",\n'
        '    save_steps=500, eval_steps=500, metric_for_best_model="near_loss")'
    },
    "auto_find_batch_size=True": {"before": 'wanted["auto_find_batch_size"] = True'},
    "a run goes on by itself": {
        "after": 'trainer.save_model(here / "old")\n'
        "trainer.state.global_step, trainer.state.train_batch_size = 3, 4\n"
        'trainer.state.save_to_json(here / "old/trainer_state.json")',
        "train": 'str(here / "old")',
    },
    "training ended at step 16 of 24": {
        "before": 'wanted |= dict(metric_for_best_model="near_loss", greater_is_better=True)\n'
        'given["callbacks"] = [EarlyStoppingCallback(1, 1e9)]'
    },
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_contradicts_is_one_line(runner: ForkserverRunner, tmp_path: Path, said: str) -> None:
    script = written(tmp_path, **MISTAKES[said])
    failed = Ranks(runner, script, tmp_path, objective="eval_near_loss").train("run", explore=18)
    assert isinstance(failed, Failure)
    assert failed.kind == "user_error"
    assert failed.message.startswith(f"own.py: attach: {said}")


def test_alone_it_is_a_plain_run(tmp_path: Path) -> None:
    script = written(tmp_path, before="wanted |= dict(max_steps=4, disable_tqdm=True)")
    script.write_text(script.read_text().replace("raise Assertion", "1 or Assertion"))
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=os.environ
    )
    reports = [line for line in ended.stdout.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in reports] == [f"step {n} of 4" for n in (1, 2, 3, 4)]
