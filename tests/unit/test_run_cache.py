"""The record of a finished run answers for it; anything less than a sound record does not."""

import json
import shutil
from pathlib import Path

import pytest

from knee_tune.plans.plan import Placement, TaskFacts, TrainPlan
from knee_tune.runs.run_cache import RECORD, FinishedRun, read_record, write_record
from knee_tune.schedules import Knee
from knee_tune.workers.protocol import Done, ReplicaDone, Report
from tests.pretend_ranks import knee_plan

REPORTS = [
    Report(step=step, total_steps=100, metrics={"valid_loss": 0.1 / step}, seconds=step / 7)
    for step in (50, 100)
]


@pytest.fixture
def plan(tmp_path: Path) -> TrainPlan:
    plan = knee_plan(tmp_path, knee=50)
    plan.checkpoint_dir.parent.mkdir()
    return plan


def complete(plan: TrainPlan, *, first_step: int = 0, accuracy: float = 2 / 3) -> Done:
    """The outcome of a run whose weights are in place."""
    weights = plan.checkpoint_dir / "weights.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"some weights")
    result = {"metrics": {"valid_accuracy": accuracy}, "weights": str(weights)}
    return Done(state="complete", step=100, first_step=first_step, result=result)


def read(plan: TrainPlan, *, expect: str = "") -> FinishedRun | None:
    """The record; what is said about it contains ``expect``, or nothing is said."""
    lines: list[str] = []
    record = read_record(plan, on_line=lines.append)
    assert bool(lines) == bool(expect)
    assert expect in "".join(lines)
    return record


def test_a_record_tells_what_the_run_told(plan: TrainPlan) -> None:
    assert read(plan) is None
    outcome = complete(plan, first_step=40)
    assert write_record(plan, outcome, REPORTS)
    record = read(plan)
    assert record is not None
    assert list(record.reports) == REPORTS
    assert record.answer(plan) == outcome.model_copy(update={"first_step": 100})


def test_a_record_moves_with_its_home(tmp_path: Path) -> None:
    old, new = (knee_plan(tmp_path / name, knee=50) for name in ("old", "new"))
    write_record(old, complete(old), REPORTS)
    shutil.move(tmp_path / "old", tmp_path / "new")
    record = read(new)
    assert record is not None
    weights = Path(record.answer(new).result["weights"])
    assert weights.parent == new.checkpoint_dir
    assert weights.is_file()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_diverged_run_is_recorded_where_it_would_diverge_again(
    plan: TrainPlan, device: str
) -> None:
    placement = Placement.model_validate({"device": device})
    plan = plan.model_copy(update={"placement": placement})
    outcome = Done(state="diverged", step=60, reason="non-finite training loss")
    assert write_record(plan, outcome, REPORTS[:1]) == (device == "cpu")
    record = read(plan)
    assert (record is not None) == (device == "cpu")
    if record is not None:
        assert record.answer(plan) == outcome.model_copy(update={"first_step": 60})


def test_no_record_of_what_might_end_otherwise(plan: TrainPlan) -> None:
    """Stopped, with metrics that JSON cannot hold, or with its weights elsewhere or nowhere."""
    fine = complete(plan)
    assert not write_record(plan, fine.model_copy(update={"state": "stopped"}), REPORTS)
    assert not write_record(plan, complete(plan, accuracy=float("inf")), REPORTS)
    elsewhere = {**fine.result, "weights": str(plan.checkpoint_dir.parent / "weights.safetensors")}
    assert not write_record(plan, fine.model_copy(update={"result": elsewhere}), REPORTS)
    Path(fine.result["weights"]).unlink()
    assert not write_record(plan, fine, REPORTS)
    assert read(plan) is None


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_a_damaged_record_is_passed_over(plan: TrainPlan, cut: int) -> None:
    write_record(plan, complete(plan), REPORTS)
    path = plan.checkpoint_dir / RECORD
    path.write_bytes(path.read_bytes()[:cut])
    assert read(plan, expect="damaged") is None


def test_a_record_with_another_number_is_passed_over(plan: TrainPlan) -> None:
    """It is JSON of the right shape, but not what was written."""
    write_record(plan, complete(plan, accuracy=0.532), REPORTS)
    path = plan.checkpoint_dir / RECORD
    written = path.read_text()
    assert written.count("0.532") == 1
    path.write_text(written.replace("0.532", "0.932"))
    assert read(plan, expect="damaged (it does not match its checksum)") is None


def test_a_record_may_be_laid_out_otherwise(plan: TrainPlan) -> None:
    write_record(plan, complete(plan), REPORTS)
    path = plan.checkpoint_dir / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True))
    assert read(plan) is not None


def test_a_record_without_a_checksum_is_passed_over(plan: TrainPlan) -> None:
    """As earlier versions wrote it."""
    write_record(plan, complete(plan), REPORTS)
    path = plan.checkpoint_dir / RECORD
    path.write_text(json.dumps(json.loads(path.read_text())["record"]))
    assert read(plan, expect="of an earlier version, without a checksum") is None


def test_a_record_of_another_version_is_passed_over(plan: TrainPlan) -> None:
    write_record(plan, complete(plan), REPORTS)
    path = plan.checkpoint_dir / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "green"}))
    assert read(plan, expect="damaged") is None


@pytest.mark.parametrize("weights", [b"", b"some weighty", None], ids=["empty", "other", "gone"])
def test_a_record_without_its_weights_is_passed_over(
    plan: TrainPlan, weights: bytes | None
) -> None:
    outcome = complete(plan)
    write_record(plan, outcome, REPORTS)
    path = Path(outcome.result["weights"])
    path.unlink()
    if weights is not None:
        path.write_bytes(weights)
    assert read(plan, expect="missing or damaged") is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"recipe": {"batch_size": 32}},
        {"steps_per_evaluation": 5},
        {"placement": Placement(world_size=2)},
        {"schedule": Knee(seed_lr=0.1, total_steps=100, warmup_steps=0, explore_steps=51)},
        {"facts": TaskFacts(steps_per_epoch=5, data_fingerprint="d", parameters=1, examples={})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_record_answers_for_no_other_run(plan: TrainPlan, change: dict[str, object]) -> None:
    write_record(plan, complete(plan), REPORTS)
    assert read(plan.model_copy(update=change), expect="another run") is None
    assert read(plan) is not None


def fused(plan: TrainPlan, *states: str) -> Done:
    """The outcome of a fused run whose complete replicas have their weights in place."""
    done = complete(plan)
    replicas = []
    for place, state in enumerate(states):
        weights = plan.checkpoint_dir / f"replica-{place}.safetensors"
        weights.touch()
        named = str(weights) if state == "complete" else None
        replicas.append(ReplicaDone.model_validate({"state": state, "step": 100, "weights": named}))
    return done.model_copy(update={"replicas": tuple(replicas)})


def test_a_fused_run_is_answered_with_the_weights_of_every_replica(tmp_path: Path) -> None:
    old, new = (knee_plan(tmp_path / name, knee=50) for name in ("old", "new"))
    assert write_record(old, fused(old, "complete", "diverged", "complete"), REPORTS)
    shutil.move(tmp_path / "old", tmp_path / "new")
    record = read(new)
    assert record is not None
    first, lost, last = record.answer(new).replicas
    assert (first.state, lost.state, lost.weights) == ("complete", "diverged", None)
    assert last.weights == str(new.checkpoint_dir / "replica-2.safetensors")
    (new.checkpoint_dir / "replica-2.safetensors").write_bytes(b"other")
    assert read(new, expect="replica-2.safetensors: missing or damaged") is None
    (new.checkpoint_dir / "replica-2.safetensors").unlink()
    assert read(new, expect="replica-2.safetensors: missing or damaged") is None


def test_a_fused_run_that_a_replica_had_to_leave_is_not_recorded(plan: TrainPlan) -> None:
    assert not write_record(plan, fused(plan, "complete", "stopped"), REPORTS)
