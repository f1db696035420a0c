"""``knee-tune check`` on scripts that are exactly resumable, or have one mistake each."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from knee_tune.commands.check import Comparison, check
from knee_tune.commands.workers import GroupOptions
from knee_tune.plans.plan import ENTRY
from knee_tune.workers.forkserver import ForkserverRunner
from tests.command_line import drive_here

SCRIPT = """\
import os, random, time
import numpy, torch, knee_tune
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
if ranks > 1:
    torch.distributed.init_process_group("gloo")
class Keeps:
    value = 1.0
    def state_dict(self): return {{"value": self.value}}
    def load_state_dict(self, state): {loads}
class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()), persistent={persistent})
    def forward(self, x):
        self.count += self.training
        return x
data = TensorDataset(torch.randn(72, 4), torch.randn(72, 1))
sampler = DistributedSampler(data, ranks, rank)
loader = DataLoader(data, batch_size=8, sampler=sampler)
hidden = nn.Linear(4, 8), Counts(), nn.BatchNorm1d(8), nn.Dropout(0.1)
model = nn.Sequential(*hidden, nn.Linear(8, 1))
trained = nn.parallel.DistributedDataParallel(model) if ranks > 1 else model
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
keeps, own, rng = Keeps(), torch.Generator().manual_seed(5), numpy.random.default_rng(5)
cache, scale = [], 1.0
{before}
run = knee_tune.join(trained, optimizer, steps=12, evaluate_every=4, state={state})
for x, y in {batches}:
    scale *= 1.1
    keeps.value *= 1.1
    {within}
    loss = nn.functional.mse_loss(trained(x), y) * keeps.value
    scaler.scale(loss).backward()
    scaler.step(optimizer); scaler.update(); optimizer.zero_grad()
    if run.evaluate_now:
        run.report(valid_loss={reported})
run.finish(model)
"""
"""An exactly resumable script, with places for mistakes."""

RIGHT = {
    "loads": "self.value = state['value']",
    "persistent": "True",
    "before": "",
    "state": "{'scaler': scaler, 'keeps': keeps, 'own': own}",
    "batches": "run.batches(loader)",
    "within": "x = x + 0.1 * torch.randn(x.shape, generator=own)",
    "reported": "loss",
}

MISTAKES = {
    "another batch\n  take batches from run.batches(loader)": {
        "before": "def endless():\n    while True: yield from loader",
        "batches": "(batch for _, batch in zip(run.steps(), endless()))",
    },
    "another batch\n  also different, and not among state= of join: own (torch.Generator)\n"
    "  give join state={'own': own}": {"state": "{'scaler': scaler, 'keeps': keeps}"},
    "rng (numpy.random.Generator)\n  replace rng": {"within": "x = x + rng.normal()"},
    "scaler (GradScaler), which is not among state= of join\n  give join state={'scaler'": {
        "state": "{'keeps': keeps, 'own': own}"
    },
    "keeps.value, of state= of join\n  its load_state_dict does not put back": {"loads": "pass"},
    "the parameter 0.weight\n  something that the loss depends on": {"within": "y = y * scale"},
    "the buffer 1.count of the model\n  it is not in the model's state_dict": {
        "persistent": "False"
    },
    "was reported as": {"reported": "scale"},
    "the global generator of python\n  something draws": {
        "within": "cache = cache or [random.random()]"
    },
}


@pytest.fixture(scope="module")
def warm() -> Iterator[ForkserverRunner]:
    runner = ForkserverRunner(ENTRY, preload=("knee_tune.jobs",))
    yield runner
    runner.close()


@pytest.fixture(autouse=True)
def temporary(
    warm: ForkserverRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where a check works; it leaves nothing there, nor in the working folder."""

    class Kept:
        run = warm.run

        def close(self) -> None:
            """Other checks need it."""

    monkeypatch.setattr("knee_tune.commands.workers.ForkserverRunner", lambda *_, **__: Kept())
    folder, here = tmp_path / "temporary", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(here)
    yield folder
    assert not [*folder.iterdir(), *here.iterdir()]


def written(tmp_path: Path, **mistake: str) -> Path:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(**RIGHT | mistake))
    return script


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_exact_script_is_said_to_be(tmp_path: Path, ranks: int) -> None:
    said = drive_here("check", written(tmp_path), "--nproc", str(ranks)).stdout
    assert said == (
        "two runs from the start: the same bits, steps 1 to 12\n"
        "resumed after step 5: the same bits, steps 6 to 12\n"
        "branched after step 5 from a trunk that explores longer: the same bits, steps 1 to 12\n"
        "exactly resumable: runs that go on or branch have the uninterrupted run's bits\n"
    )


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named_with_what_to_do(tmp_path: Path, said: str) -> None:
    script = written(tmp_path, **MISTAKES[said])
    printed = drive_here("check", script, "--steps", "8", expect=1).stdout
    first, found = printed.split("\n", 1)
    assert first == "two runs from the start: the same bits, steps 1 to 8"
    assert found.startswith("resumed after step 3: not the same bits, first at step 4: ")
    assert said in found


def test_the_rank_is_named(tmp_path: Path) -> None:
    script = written(tmp_path, within="x = x + rank * rng.normal()")
    command = ("check", script, "--steps", "8", "--cut", "5", "--nproc", "2", "--json")
    found = json.loads(drive_here(*command, expect=1).stdout)
    difference = found["comparisons"][-1]["difference"]
    assert (found["exact"], found["cut"]) == (False, 5)
    assert (difference["step"], difference["rank"], difference["part"]) == (6, 1, "inputs")


def test_a_script_without_a_seed_is_not_the_same_twice(tmp_path: Path) -> None:
    script = written(tmp_path, before="torch.manual_seed(time.time_ns())")
    printed = drive_here("check", script, "--steps", "8", expect=1).stdout
    assert printed.startswith("two runs from the start: not the same bits, first at step 1: ")


@pytest.mark.parametrize(
    ("mistake", "arguments", "said"),
    [
        ({}, ("--cut", "11"), "--cut 11: of --steps 12 it can be 9 at most"),
        ({"before": "1 / 0"}, (), "train.py:29: ZeroDivisionError: division by zero\n"),
        ({"reported": "float('nan')"}, (), "step 3: non-finite valid_loss; nothing can be"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    tmp_path: Path, mistake: dict[str, str], arguments: tuple[str, ...], said: str
) -> None:
    done = drive_here("check", written(tmp_path, **mistake), *arguments, expect=2)
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


TASK = """\
import torch, knee_tune
from torch import nn
from torch.utils.data import TensorDataset
class Forgets(knee_tune.SimpleTask):
    metrics = {{"loss": "minimize"}}
    def datasets(self):
        self.own, self.noise = torch.Generator().manual_seed(1), 0.1
        rows = torch.arange(72.0).reshape(72, 1) / 72
        return {{"train": TensorDataset(rows, rows), "valid": TensorDataset(rows, rows)}}
    def build_model(self): return nn.Linear(1, 1)
    def loss(self, model, batch):
        {within}
        return nn.functional.mse_loss(model(batch[0]), batch[1]), len(batch[0])
    def evaluate_batch(self, model, batch):
        return {{"loss": ((model(batch[0]) - batch[1]).square().sum(), len(batch[0]))}}
"""


AVERAGED = """\
    def build_model(self):
        model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
        self.average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        return model
    def state(self, model): return {"average": self.average}
    def after_step(self, model, step): self.average.update_parameters(model)
    def measured(self, model): return self.average.module
"""


def task_of(tmp_path: Path, within: str, *, further: str = "") -> str:
    file = tmp_path / f"task_of_{tmp_path.name}.py"  # this process has only one module of a name
    file.write_text(TASK.format(within=within) + further)
    return f"{file}:Forgets"


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_exact_task_is_said_to_be(tmp_path: Path, ranks: int) -> None:
    task = task_of(tmp_path, "batch[0].add_(0.1 * torch.randn(()))")
    said = drive_here("check", "--task", task, "--steps", "8", "--nproc", str(ranks)).stdout
    assert said.splitlines()[-1].startswith("exactly resumable: ")


def test_an_average_is_the_same_on_every_rank_with_its_buffers(tmp_path: Path) -> None:
    task = task_of(tmp_path, "pass", further=AVERAGED)
    said = drive_here("check", "--task", task, "--steps", "8", "--nproc", "2").stdout
    assert said.splitlines()[-1].startswith("exactly resumable: ")


@pytest.mark.parametrize(
    ("within", "said"),
    [
        (
            "batch[0].add_(torch.randn((), generator=self.own))",
            "another batch\n  also different, and not among the task's state(): "
            "self.own (torch.Generator)\n  draw from torch's global generator instead of self.own",
        ),
        (
            "self.noise *= 2; batch[1].mul_(self.noise)",
            "the parameter weight\n  something that the loss depends on is not saved: keep what "
            "changes from step to step (a loss scale, a count, a running mean) in an object with "
            "state_dict and load_state_dict, and return that from the task's state()",
        ),
    ],
)
def test_a_tasks_mistake_is_named(tmp_path: Path, within: str, said: str) -> None:
    task = task_of(tmp_path, within)
    found = drive_here("check", "--task", task, "--steps", "8", expect=1).stdout
    assert "resumed after step 3: not the same bits, first at step 4: " in found
    assert said in found


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "name what to check: a script, or a task with --task"),
        (("train.py", "--task", "digits"), "name what to check: a script, or a task with --task"),
        (("train.py", "--preset", "demo"), "--preset, --set: of tasks alone"),
    ],
)
def test_a_check_is_of_one_thing(asked: tuple[str, ...], said: str) -> None:
    assert said in drive_here("check", *asked, expect=2).stderr


def test_an_interrupted_check_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(_: Comparison) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(written(tmp_path), (), GroupOptions(), steps=8, on_comparison=interrupt)
