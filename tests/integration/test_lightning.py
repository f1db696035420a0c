"""Lightning's Trainer on real ranks: branched, killed and pruned, and what it may not be given."""

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
from tests.integration.script_ranks import SHARED, Ranks, check_killed_rank, check_pruned

if find_spec("lightning") is None:  # its import takes many seconds, and only ranks need it
    pytest.skip("the extra `lightning` is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def example(repository: Path) -> Path:
    return repository / "examples" / "lightning" / "train.py"


@pytest.fixture(scope="module")
def runner(example: Path) -> Iterator[ForkserverRunner]:
    made = ForkserverRunner(ENTRY, preload=("knee_tune.jobs", *installed_imports(example)))
    yield made
    made.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_branch_is_the_uninterrupted_run(
    runner: ForkserverRunner,
    example: Path,
    tmp_path: Path,
    ranks: int,
) -> None:
    training = Ranks(runner, example, tmp_path, ranks=ranks)
    alone = done(training.train("alone", explore=SHARED, trunk=False))
    uninterrupted = training.curve
    done(training.train("longer", explore=18))
    branched = done(training.train("branch", explore=SHARED))
    assert (alone.first_step, branched.first_step) == (0, SHARED)
    assert [*uninterrupted] == [8, 16, 24]
    assert training.curve == uninterrupted
    assert same(training.weights("branch"), training.weights("alone"))


def test_a_killed_rank_goes_on_with_the_same_bits(runner: ForkserverRunner, tmp_path: Path) -> None:
    """Where an epoch's last step accumulates less, hooks draw, and a callback has a state."""
    script = tmp_path / "own.py"
    script.write_text(OWN.format(**(PLAIN | {"trainer": "accumulate_grad_batches=3"})))
    check_killed_rank(Ranks(runner, script, tmp_path, ranks=2))


def test_manual_optimization_of_two_optimizers(runner: ForkserverRunner, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(OWN.format(**(PLAIN | {"model": "Two()"})))
    training = Ranks(runner, script, tmp_path)
    done(training.train("alone", explore=SHARED, trunk=False))
    done(training.train("longer", explore=18))
    assert done(training.train("branch", explore=SHARED)).first_step == SHARED
    assert same(training.weights("branch"), training.weights("alone"))


def test_a_pruned_run_leaves_its_trainer_on_every_rank(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    check_pruned(Ranks(runner, example, tmp_path, ranks=2))


def test_a_trainer_is_described_up_to_its_fit(
    runner: ForkserverRunner, example: Path, tmp_path: Path
) -> None:
    order = Ranks(runner, example, tmp_path, ranks=2).order("describe")
    found = done(runner.run(DescribePlan(**dict(order)), Callbacks())).result
    assert found[JOINED]["steps"] == 200
    assert (found[JOINED]["objective"], found[JOINED]["seed_lr"]) == ("valid_loss", 0.05)
    assert found["data_fingerprint"]


OWN = """\
import lightning as L
import torch
from lightning.pytorch import callbacks
from torch.utils.data import DataLoader, Dataset, IterableDataset
from knee_tune.lightning import KneeCallback

class Noisy(Dataset):
    def __len__(self): return 104
    def __getitem__(self, index): return torch.full((4,), index / 100) + 0.1 * torch.randn(4)

class Stream(IterableDataset):
    def __iter__(self): yield from Noisy()

class Norm(L.Callback):
    norm = torch.zeros(())
    def on_train_batch_end(self, trainer, module, *_):
        self.norm = 0.9 * self.norm + module.one.weight.norm().detach()
    def on_validation_end(self, trainer, module):
        with torch.no_grad(): module.one.weight.mul_(1 - 0.001 * self.norm)
    def state_dict(self): return {{"norm": self.norm}}
    def load_state_dict(self, state): self.norm = state["norm"]

class Old(L.Callback):
    def on_save_checkpoint(self, trainer, module, checkpoint): ...

class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    def loss(self, batch):
        return (self.two(self.one(batch)) - batch.sum(1, keepdim=True)).square().mean()
    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (1 + self.current_epoch) * (2 if batch_idx % 5 == 1 else 1)
    def validation_step(self, batch, batch_idx):
        self.log("valid_loss", self.loss(batch), sync_dist=True)
    def on_train_epoch_start(self): torch.rand(1)
    def configure_optimizers(self): return torch.optim.Adam(self.parameters(), lr=0.05)

class Two(Net):
    automatic_optimization = False
    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), lr=0.05) for part in (self.one, self.two)]

class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

class Skips(Net):
    def on_train_batch_start(self, batch, batch_idx): return -1 if batch_idx == 3 else None

class Fails(Net):
    def training_step(self, batch, batch_idx): raise ValueError("no width")

class Unnamed(Net):
    def validation_step(self, batch, batch_idx): self.log("loss", self.loss(batch))

class Breaks(Noisy):
    def __getitem__(self, index): raise IndexError(index)

knee = KneeCallback(steps=24, evaluate_every=8)
trainer = L.Trainer(callbacks=[Norm(), {callback}knee], {trainer})
trainer.fit({model}, {train}, {valid})
"""

PLAIN = {
    "callback": "",
    "trainer": "",
    "model": "Net()",
    "train": "DataLoader(Noisy(), 4, shuffle=True)",
    "valid": "DataLoader(Noisy(), 52)",
}

MISTAKES = {
    "KneeCallback: knee-tune writes the LR": {"model": "Scheduled()"},
    "KneeCallback: step 4 of the run is the trainer's 3": {"model": "Skips()"},
    "step 8: valid_loss was not reported, only loss": {"model": "Unnamed()"},
    "ValueError: no width": {"model": "Fails()"},
    "IndexError: Caught IndexError in DataLoader worker process 0": {
        "train": "DataLoader(Breaks(), 4, num_workers=1)"
    },
    "KneeCallback: only one loader of a map-style data set": {"train": "DataLoader(Stream(), 4)"},
    "KneeCallback: nothing is validated": {"valid": "None"},
    "KneeCallback: remove EarlyStopping": {"callback": "callbacks.EarlyStopping('valid_loss'), "},
    "KneeCallback: Old keeps its state in on_save_checkpoint": {"callback": "Old(), "},
    "remove limit_train_batches=": {"trainer": "limit_train_batches=3"},
    "ValueError: You set `devices=1`": {"trainer": "devices=1"},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_one_line(runner: ForkserverRunner, tmp_path: Path, said: str) -> None:
    script = tmp_path / "own.py"
    script.write_text(OWN.format(**(PLAIN | MISTAKES[said])))
    failed = Ranks(runner, script, tmp_path, ranks=2).train("run", explore=18)
    assert isinstance(failed, Failure)
    assert failed.kind == "user_error", "so it is exit code 2, and no retry"
    assert failed.message.startswith("own.py:")
    assert said in failed.message
