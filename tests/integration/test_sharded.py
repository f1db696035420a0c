"""Models that two ranks have a part of each (FSDP2), in a script and in a task."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from knee_tune.plans.plan import (
    ENTRY,
    DescribePlan,
    Placement,
    TaskOrder,
    TrainPlan,
    TrunkPlan,
    checkpoint_path,
)
from knee_tune.schedules import Knee
from knee_tune.scripts.imports import installed_imports
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import Callbacks, Done
from tests.integration.runs import done, same
from tests.integration.script_ranks import SHARED, Ranks
from tests.warm import cold


@pytest.fixture(scope="module")
def example(repository: Path) -> Path:
    return repository / "examples" / "sharded" / "train.py"


@pytest.fixture(scope="module")
def runner(example: Path) -> Iterator[ForkserverRunner]:
    with cold():
        made = ForkserverRunner(ENTRY, preload=("knee_tune.jobs", *installed_imports(example)))
    yield made
    made.close()


def test_a_branch_of_a_sharded_script_is_the_uninterrupted_run(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    training = Ranks(runner, example, tmp_path, ranks=2)
    alone = done(training.train("alone", explore=SHARED, trunk=False))
    uninterrupted = training.curve
    done(training.train("longer", explore=18))
    branched = done(training.train("branch", explore=SHARED))
    assert (alone.first_step, branched.first_step) == (0, SHARED)
    assert training.curve == uninterrupted
    assert same(training.weights("branch"), training.weights("alone"))
    assert training.weights("alone")["0.weight"].shape == (48, 64), "one file of whole tensors"

    order = dict(training.order("describe"))
    assert done(runner.run(DescribePlan(**order), Callbacks())).result["mesh"] == [2]


TASK = """\
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import TensorDataset
import knee_tune

class Sharded(knee_tune.SimpleTask):
    metrics, watched = {"loss": "minimize"}, "loss"
    def datasets(self):
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(60, 5, generator=draw)
        data = TensorDataset(x, x.sum(1, keepdim=True))
        return {"train": data, "valid": TensorDataset(*data[:17])}
    def build_model(self):
        return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1))
    def shard(self, model, mesh):
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    def loss(self, model, batch):
        return nn.functional.mse_loss(model(batch[0]), batch[1]), len(batch[0])
    def evaluate_batch(self, model, batch):
        return {"loss": (nn.functional.mse_loss(model(batch[0]), batch[1], reduction="sum"), 1)}
"""
"""Of the 17 examples that it is measured on one rank has a batch more than the other."""


class Trainings:
    """Runs of the task that share a trunk, and what was said of them."""

    def __init__(self, runner: ForkserverRunner, home: Path, keep: str) -> None:
        self._runner, self._home, self._keep = runner, home, keep
        (home / "task.py").write_text(TASK)
        (home / "logs").mkdir()
        (home / "trunks").mkdir()
        self.said: list[str] = []
        self.trunk = checkpoint_path(home / "trunks" / "one", step=8)

    def train(self, name: str, *, explore: int = 8, trunk: bool = True) -> Done:
        self.said = []
        order = TaskOrder(
            task=f"{self._home}/task.py:Sharded",
            recipe={
                "batch_size": 8,
                "accumulate": 2,
                "clip_norm": 0.5,
                "keep": self._keep,
                "optimizer": {"name": "adamw"},
            },
            seed=3,
            data_dir=self._home,
            placement=Placement(world_size=2),
            log_dir=self._home / "logs" / name,
        )
        steps = (4, 8) if explore >= 8 else ()
        plan = TrainPlan(
            **dict(order),
            schedule=Knee(seed_lr=0.05, total_steps=16, explore_steps=explore),
            steps_per_evaluation=4,
            checkpoint_dir=self._home / name,
            trunk=TrunkPlan(key="one", folder=self.trunk.parent, checkpoint_steps=steps)
            if trunk
            else None,
        )
        return done(self._runner.run(plan, Callbacks(on_line=self.said.append)))

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self._home / name / "weights.safetensors")


def test_a_branch_of_a_sharded_task_is_the_uninterrupted_run(
    runner: ForkserverRunner, tmp_path: Path
) -> None:
    """Also where the shard of a rank is damaged: then it begins at an earlier checkpoint."""
    training = Trainings(runner, tmp_path, keep="best")
    alone = training.train("alone", trunk=False)
    training.train("longer", explore=12)
    branched = training.train("branch")
    assert (alone.first_step, branched.first_step) == (0, 8)
    assert branched.result["metrics"] == alone.result["metrics"]
    assert same(training.weights("branch"), training.weights("alone"))
    names = {"state.pt", "state-rank-1.pt", "weights.safetensors"}
    assert {*json.loads((training.trunk / "manifest.json").read_text())["sha256"]} == names

    shard = training.trunk / "state-rank-1.pt"
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = training.train("damaged")
    assert damaged.first_step == 4
    assert training.said == [
        f"{training.trunk}: no good, starting from an earlier checkpoint: "
        "state-rank-1.pt does not match its checksum"
    ]
    assert same(training.weights("damaged"), training.weights("alone"))
