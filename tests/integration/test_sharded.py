"""Models that two ranks have a part of each (FSDP2), in a script and in a task."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from knee_tune.plans.plan import ENTRY, DescribePlan, checkpoint_path
from knee_tune.scripts.imports import installed_imports
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.protocol import Callbacks
from tests.integration.runs import done, same
from tests.integration.script_ranks import SHARED, Ranks, check_killed_rank
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

    folder = checkpoint_path(tmp_path / "trunks" / "one", step=SHARED)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.keys() == {"state.pt", "state-rank-1.pt", "manifest.json", "weights.safetensors"}
