"""A user's training script on real ranks: branched, killed and pruned, and what it can do wrong."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knee_tune.plans.plan import ENTRY, DescribePlan
from knee_tune.scripts.imports import installed_imports
from knee_tune.scripts.recipe import JOINED
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import Callbacks, Failure
from knee_tune.workers.torchrun import TorchrunRunner
from tests.integration.runs import done, same
from tests.integration.script_ranks import (
    SHARED,
    STEPS,
    Ranks,
    check_killed_rank,
    check_pruned,
)
from tests.warm import cold


@pytest.fixture(scope="module")
def runner(repository: Path) -> Iterator[ForkserverRunner]:
    imports = installed_imports(repository / "examples" / "pytorch" / "train.py")
    with cold():  # what a script imports is told apart from what was there
        made = ForkserverRunner(ENTRY, preload=("knee_tune.jobs", *imports))
    yield made
    made.close()


@pytest.fixture
def example(repository: Path) -> Path:
    return repository / "examples" / "pytorch" / "train.py"


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_branch_is_the_uninterrupted_run(
    runner: ForkserverRunner, example: Path, tmp_path: Path, ranks: int
) -> None:
    training = Ranks(runner, example, tmp_path, ranks=ranks)
    alone = done(training.train("alone", explore=SHARED, trunk=False))
    uninterrupted = training.curve
    done(training.train("longer", explore=18))
    branched = done(training.train("branch", explore=SHARED))
    assert (alone.first_step, branched.first_step) == (0, SHARED)
    assert training.curve == uninterrupted
    assert branched.result["metrics"] == alone.result["metrics"]
    assert same(training.weights("branch"), training.weights("alone"))


def test_a_group_that_decays_later_is_no_part_of_the_trunk(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    """The head decays over half of the schedule's decay: branched is uninterrupted all the same."""
    text = example.read_text()
    for name, settings in (("together", '"lr": 0.02'), ("apart", '"lr": 0.02, "decay_scale": 0.5')):
        folder = tmp_path / name
        shutil.copytree(example.parent, folder)
        (folder / "train.py").write_text(text.replace('"lr": 0.02', settings))
    together, apart = (
        Ranks(runner, tmp_path / name / "train.py", tmp_path / name)
        for name in ("together", "apart")
    )
    alone = done(apart.train("alone", explore=SHARED, trunk=False))
    done(apart.train("longer", explore=18))
    branched = done(apart.train("branch", explore=SHARED))
    assert (alone.first_step, branched.first_step) == (0, SHARED)
    assert same(apart.weights("branch"), apart.weights("alone"))
    done(together.train("alone", explore=SHARED, trunk=False))
    assert not same(together.weights("alone"), apart.weights("alone"))


def test_torchrun_trains_the_same_bits(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    forked = Ranks(runner, example, tmp_path, ranks=2)
    done(forked.train("forked", explore=18))
    started = Ranks(TorchrunRunner(ENTRY), example, tmp_path, ranks=2)
    branched = done(started.train("started", explore=18))
    assert branched.first_step == SHARED
    assert same(started.weights("started"), forked.weights("forked"))


def test_a_killed_rank_goes_on_with_the_same_bits(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    check_killed_rank(Ranks(runner, example, tmp_path, ranks=2))


def test_a_pruned_run_leaves_its_script_on_every_rank(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    check_pruned(Ranks(runner, example, tmp_path, ranks=2))


def test_a_script_is_described_up_to_join(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    training = Ranks(runner, example, tmp_path, ranks=2)
    order = dict(training.order("describe"))
    found = done(runner.run(DescribePlan(**order), Callbacks())).result
    assert found[JOINED] == {
        "steps": 200,
        "evaluate_every": 20,
        "objective": "valid_loss",
        "direction": "minimize",
        "seed_lr": 0.05,
        "warmup_steps": 0,
    }
    assert (found["parameters"], found["modules"]) == (1386, ["network"])
    assert found["data_fingerprint"]


FIRST_BATCH = """\
import torch, knee_tune
model = torch.nn.Linear(1, 1)
run = knee_tune.join(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=9, maximize="score")
for step in run.steps():
    model(torch.full((2, 1), {value}))
"""


def test_data_that_nobody_names_is_known_by_its_first_batch(
    runner: ForkserverRunner, tmp_path: Path
) -> None:
    def described(value: float) -> dict[str, Any]:
        script = tmp_path / "own.py"
        script.write_text(FIRST_BATCH.format(value=value))
        order = Ranks(runner, script, tmp_path).order("describe")
        return done(runner.run(DescribePlan(**dict(order)), Callbacks())).result

    one, same_again, other = described(1.0), described(1.0), described(2.0)
    assert one["data_fingerprint"] == same_again["data_fingerprint"] != other["data_fingerprint"]
    assert (one[JOINED]["steps"], one[JOINED]["direction"]) == (9, "maximize")


AVERAGED = """\
import copy, torch, knee_tune
model = torch.nn.Linear(1, 1)
average = copy.deepcopy(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = knee_tune.join(model, optimizer, state={"average": average}, measured=average)
for step in run.steps():
    with torch.no_grad():
        average.weight.fill_(step)
    run.report(valid_loss=1.0)
run.finish(average)
"""


def test_an_average_is_kept_in_place_of_the_model(runner: ForkserverRunner, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(AVERAGED)
    training = Ranks(runner, script, tmp_path)
    done(training.train("run", explore=18))
    assert training.weights("run")["weight"].item() == STEPS


SCRIPT_TEXT = """\
import os
import numpy
import torch
import knee_tune
class Empty(torch.utils.data.Dataset):
    def __len__(self): return 3
    def __getitem__(self, index): raise IndexError(index)
class Keeps:
    def state_dict(self): return {{"of": numpy.zeros(1)}}
    def load_state_dict(self, state): ...
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
rank = os.environ["RANK"]
state = {{}}
{before}
run = knee_tune.join(model, optimizer, state=state)
for step in run.steps():
    {within}
    optimizer.step()
    if run.evaluate_now:
        run.report({reported})
{after}
"""

MISTAKES = {
    "own.py: ended without knee_tune.join": {"before": "raise SystemExit"},
    "own.py: ended without a step": {"before": "run = knee_tune.join(model, optimizer); exit()"},
    "own.py: step 8: nothing was reported": {"reported": ""},
    "own.py: step 8: valid_loss was not reported, only valid_los": {"reported": "valid_los=1"},
    "own.py: step 1: the LR was set to 0.05, and something made it 0.1": {
        "within": "optimizer.param_groups[0]['lr'] *= 2"
    },
    "own.py: rank 1: left its loop at step 9 of 24": {
        "within": "\n    if step == 9 and rank == '1': break",
        "after": "if rank == '0': run.finish(model)",
    },
    "own.py: run.finish at step 9 of 24": {"within": "\n    if step == 9: break"},
    "own.py: ended without run.finish": {"after": ""},
    "own.py: join: `state` 'ema' holds a numpy array at of": {"before": "state = {'ema': Keeps()}"},
    "own.py:15: ValueError: no width; its log: ": {"before": "raise ValueError('no width')"},
    "own.py: decay_scale=2 of a parameter group: it must be above 0 and at most 1": {
        "before": "optimizer.param_groups[0]['decay_scale'] = 2"
    },
    "own.py: it exited with 3; its log: ": {"before": "raise SystemExit(3)"},
    "own.py:16: RuntimeError: stack expects each tensor to be equal size": {
        "before": "loader = torch.utils.data.DataLoader([torch.ones(1), torch.ones(2)], 2)\n"
        "for batch in knee_tune.join(model, optimizer).batches(loader): pass"
    },
    "own.py:16: IndexError: Caught IndexError in DataLoader worker process 0": {
        "before": "loader = torch.utils.data.DataLoader(Empty(), num_workers=1)\n"
        "for batch in knee_tune.join(model, optimizer).batches(loader): pass"
    },
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line(runner: ForkserverRunner, tmp_path: Path, said: str) -> None:
    parts = {
        "before": "",
        "within": "",
        "reported": "valid_loss=1.0",
        "after": "run.finish(model)",
    }
    script = tmp_path / "own.py"
    script.write_text(SCRIPT_TEXT.format(**(parts | MISTAKES[said])))
    failed = Ranks(runner, script, tmp_path, ranks=2).train("run", explore=18)
    assert isinstance(failed, Failure)
    assert failed.kind == "user_error", "so it is exit code 2, and no retry"
    # Where every rank makes the mistake, either may be the first to say it.
    anybodys = failed.message.replace(f"rank {failed.rank}: ", "", 1)
    assert failed.message.startswith(said) or anybodys.startswith(said)


def test_a_death_without_an_exception_is_no_mistake(
    runner: ForkserverRunner, tmp_path: Path
) -> None:
    script = tmp_path / "own.py"
    script.write_text("import os; os.kill(os.getpid(), 9)")
    died = Ranks(runner, script, tmp_path).train("run", explore=18)
    assert isinstance(died, Failure)
    assert died.by_machine
