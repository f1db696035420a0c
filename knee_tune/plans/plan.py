"""The plan: the complete, serialisable order for one job of a worker group."""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, ConfigDict, Field, PlainSerializer, model_validator

from knee_tune.config.recipe import Spec
from knee_tune.config.study import Analysis, TrunkFile
from knee_tune.schedules import (
    Constant,
    Cosine,
    InverseSquareRoot,
    Knee,
    Linear,
    OneCycle,
    Phased,
    StepDecay,
)
from knee_tune.schedules.schedule import LRRange, as_stored

ENTRY = "knee_tune.jobs:run_job"
"""What a group runner calls on every rank, with a plan. Naming it costs the driver no torch."""

SCRIPT = "script"
"""The task of every plan whose training is somebody's script: the recipe says which."""

Schedule = Annotated[
    Knee | Phased | StepDecay | Linear | Cosine | OneCycle | InverseSquareRoot | Constant | LRRange,
    Field(discriminator="name"),
    PlainSerializer(as_stored),
]


class Placement(Spec):
    """The ranks, devices and arithmetic of a worker group."""

    world_size: int = Field(default=1, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    visible_devices: str | None = Field(
        default=None, description="CUDA_VISIBLE_DEVICES of the group; None leaves it alone"
    )
    amp: bool = Field(default=False, description="bf16 autocast (GPU only)")
    compile: bool = Field(default=False, description="the training step's model by torch.compile")
    stall_timeout: float = Field(
        default=600.0, gt=0, description="seconds without a sign of life before a rank is hung"
    )


class TaskOrder(Spec):
    """The part of every plan that its task is built from, and its trunk begins with."""

    task: str
    recipe: dict[str, Any]
    seed: int = Field(ge=0)
    data_dir: Path
    placement: Placement = Placement()
    log_dir: Path = Field(description="one file per rank with what it printed")
    trunk_file: TrunkFile | None = Field(
        default=None,
        exclude_if=lambda file: file is None,
        description="what runs begin with, if not with step 1",
    )


class DescribePlan(TaskOrder):
    """Look at the task's data and answer with :class:`TaskFacts`; trains nothing."""

    job: Literal["describe"] = "describe"


class TaskFacts(Spec):
    """Facts of a task's data, model and code; the answer to a :class:`DescribePlan`."""

    steps_per_epoch: int
    data_fingerprint: str
    parameters: int
    examples: dict[str, int] = Field(
        description="examples per split: of valid and test those measured"
    )
    code: str = Field(default="", description="fingerprint of what trains: code and libraries")
    cpu: str = Field(default="", description="kind of CPU: its arithmetic differs in the last bits")
    threads: int = Field(default=1, gt=0, description="CPU threads of a rank")
    modules: tuple[str, ...] = Field(
        default=(), description="where the classes of task, recipe and model are, bases included"
    )
    unfusable: str = Field(
        default="not said", description="why replicas cannot train as one batched model; empty: can"
    )
    gpus: int = Field(default=0, description="CUDA devices that the worker group could see")
    mesh: tuple[int, ...] = Field(
        default=(),
        exclude_if=lambda mesh: not mesh,
        description="shape of the mesh that the model is sharded over; empty: it is not",
    )


class TrunkPlan(Spec):
    """The place of a run's trunk, and which of its states are saved."""

    model_config = ConfigDict(serialize_by_alias=True)

    key: str = Field(description="see :func:`knee_tune.plans.identity.trunk_key`")
    folder: Path = Field(description="starts from the highest sound checkpoint in here")
    # Plans that studies keep call them knots.
    checkpoint_steps: tuple[int, ...] = Field(
        validation_alias=AliasChoices("checkpoint_steps", "knots"),
        serialization_alias="knots",
        description="steps after which the state is saved, ascending; none beyond the run's knee",
    )


class Replica(Spec):
    """One model of a fused run: a random seed and a schedule of its own."""

    seed: int = Field(ge=0)
    schedule: Schedule


class TrainPlan(TaskOrder):
    """Train one run. Everything that decides its result is in here
    (:func:`knee_tune.plans.identity.run_identity`).

    With ``replicas`` it is a fused run: models of one task that train step by step together, as one
    batched model. ``seed`` and ``schedule`` are then those of the first.
    """

    job: Literal["train"] = "train"
    schedule: Schedule
    replicas: tuple[Replica, ...] = Field(default=(), description="empty: a single model")
    steps_per_evaluation: int = Field(gt=0)
    facts: TaskFacts | None = Field(
        default=None, description="data, code and machine; None: of a version that did not say"
    )
    checkpoint_dir: Path = Field(description="resumes from the newest sound checkpoint in here")
    trunk: TrunkPlan | None = Field(default=None, description="None: shares nothing")
    watched: bool = Field(
        default=False,
        exclude_if=lambda watched: not watched,
        description="whether every rank notes digests of every step beside its log",
    )

    @model_validator(mode="after")
    def _replicas_keep_step(self) -> Self:
        if any(replica.schedule.total_steps != self.total_steps for replica in self.replicas):
            raise ValueError("replicas: all need the same budget, they train step by step together")
        return self

    @property
    def total_steps(self) -> int:
        """The budget in steps."""
        return self.schedule.total_steps

    def evaluation_steps(self) -> list[int]:
        """The steps after which validation runs.

        The last step is always one of them; one that would come just before it is left out.
        """
        every = self.steps_per_evaluation
        return [*range(every, self.total_steps - (every - 1) // 2, every), self.total_steps]


class TestPlan(TaskOrder):
    """Evaluate finished weights once on the test split."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    job: Literal["test"] = "test"
    weights: Path


class AnalysePlan(TaskOrder):
    """Measure a property of finished weights."""

    job: Literal["analyse"] = "analyse"
    weights: Path
    analysis: Analysis


class LRRangePlan(TaskOrder):
    """Smith's LR range test: train with an LR that grows from step to step, and record the loss."""

    job: Literal["lr_range"] = "lr_range"
    low: float = Field(gt=0, description="LR of the first step")
    high: float = Field(gt=0, description="LR of the last step")
    steps: int = Field(gt=1)


Plan = Annotated[
    DescribePlan | TrainPlan | TestPlan | AnalysePlan | LRRangePlan, Field(discriminator="job")
]


# Where a run's checkpoints and weights are, for those who only need to find or delete them.

KEPT_WEIGHTS = "weights.safetensors"
"""The file in a run's checkpoint folder with the weights that the run keeps."""

CHECKPOINT_MANIFEST = "manifest.json"
"""The file in a checkpoint's folder with whose state it is, and the checksums of the others."""


def checkpoint_path(directory: Path, *, step: int) -> Path:
    """The folder of one checkpoint."""
    return directory / f"step-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(folder.name.removeprefix("step-"))


def checkpoint_paths(directory: Path) -> list[Path]:
    """Every checkpoint in ``directory``, the newest first, sound or not."""
    found = (path for path in directory.glob("step-*") if path.name[5:].isdecimal())
    return sorted(found, key=checkpoint_step, reverse=True)


def discard_checkpoints(directory: Path, *, keep: int = 0) -> None:
    """Delete all but the ``keep`` newest; the kept weights beside them stay."""
    for old in checkpoint_paths(directory)[keep:]:
        shutil.rmtree(old)
