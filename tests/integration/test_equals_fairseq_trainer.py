"""Our loop gives, bit for bit, the parameters of fairseq's Trainer.

Both start from the same weights and see the same batches. Dropout is seeded as the Trainer seeds
it (seed + updates done, the same on every rank); the product seeds each rank on its own.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

pytest.importorskip("fairseq", reason="needs the translation extra")

from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.schedules import Constant
from knee_tune.tasks.translation.prepared import find_prepared
from knee_tune.tasks.translation.recipe import TranslationRecipe
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.training import single
from knee_tune.workers.group import Group
from tests import waiting, warm
from tests.command_line import environment

STEPS = 50
LR = 0.01
SIZE = {"encoder_layers": 1, "decoder_layers": 1, "embed_dim": 16, "ffn_dim": 32, "heads": 2}
RECIPE = {"data": "demo.de-en", "tokens_per_step": 1200, "model": SIZE}
ALONE: list[dict[str, Any]] = [{"clip_norm": 0.5}, {"accumulate": 3}]
# The first deals 138 batches to two ranks, the second 67: its epoch ends with an empty share.
# Not both at once: where an empty share follows a full one in the same step, fairseq forgets the
# tokens of the full one when it normalises (it sets the rank's whole count to 0). We count them.
TOGETHER: list[dict[str, Any]] = [
    {"clip_norm": 0.5, "accumulate": 2, "tokens_per_step": 1280},
    {"clip_norm": None, "optimizer": {"name": "sgd"}},
]


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks trained, ours and fairseq's: importing fairseq takes time."""
    folder = tmp_path_factory.mktemp("parameters")
    find_prepared(folder, "demo.de-en")
    done = warm.run(
        "tests.integration.test_equals_fairseq_trainer:train",
        str(folder),
        env=environment(),
        timeout=2 * waiting.COMMAND,  # within what the first test has
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.timeout(400)
@pytest.mark.parametrize("case", ["alone0", "alone1", "together0-rank0", "together0-rank1"])
def test_radam_with_clipping_and_accumulation(case: str, parameters: Path) -> None:
    _assert_equal_after_training(parameters / f"{case}.pt")


@pytest.mark.parametrize("case", ["together1-rank0", "together1-rank1"])
def test_sgd_without_clipping(case: str, parameters: Path) -> None:
    _assert_equal_after_training(parameters / f"{case}.pt")


def _assert_equal_after_training(file: Path) -> None:
    start, ours, fairseqs = torch.load(file, weights_only=True)
    for name, parameter in ours.items():
        assert torch.equal(parameter, fairseqs[name]), f"{name} differs"
    assert not torch.equal(
        start["encoder.embed_tokens.weight"], ours["encoder.embed_tokens.weight"]
    )


def train(folder: str) -> None:
    """Train in two ranks, forked from this process, which has imported fairseq once for both."""
    start_processes(  # type: ignore[no-untyped-call]
        _rank, (Path(folder),), nprocs=2, start_method="fork"
    )


def _rank(rank: int, folder: Path) -> None:
    """Each rank trains one recipe on its own, then both train the others together."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(_train_both(ALONE[rank], Group(), folder), folder / f"alone{rank}.pt")
    for number, changes in enumerate(TOGETHER):
        trained = _train_both(changes, Group(rank, 2), folder)
        torch.save(trained, folder / f"together{number}-rank{rank}.pt")
    dist.destroy_process_group()


def _train_both(changes: dict[str, Any], group: Group, folder: Path) -> list[dict[str, Any]]:
    """Parameters at the start, after our loop, and after fairseq's Trainer."""
    from benchmarks.fairseq_reference import Reference

    recipe = RECIPE | changes
    plan = TrainPlan(
        task="iwslt",
        recipe=recipe,
        seed=3,
        data_dir=folder,
        placement=Placement(world_size=group.world_size),
        log_dir=folder,
        schedule=Constant(seed_lr=LR, total_steps=STEPS),
        steps_per_evaluation=STEPS,
        checkpoint_dir=folder / "checkpoints",
    )
    ours, fairseqs = (
        TranslationTask(TranslationRecipe.model_validate(recipe), data_dir=folder, seed=plan.seed)
        for _ in range(2)
    )
    run = single.SingleModel(ours, plan, group)
    model = fairseqs.build_model()
    model.load_state_dict(run.model.state_dict())
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def as_the_trainer(device: torch.device, seed: int, rank: int, step: int) -> None:
        torch.manual_seed(ours.order_seed + step - 1)

    with mock.patch.object(single, "seed_step", as_the_trainer):
        for step in range(1, STEPS + 1):
            run.update(step)
    reference = Reference(fairseqs, model, group, lr=LR)
    for _ in range(STEPS):
        reference.step()
    return [start, run.model.state_dict(), model.state_dict()]
