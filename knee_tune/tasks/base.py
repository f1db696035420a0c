"""The task protocol: what the training loop, fused training and the analyses ask of a workload."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from numpy.typing import NDArray
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from knee_tune.config.recipe import Recipe
from knee_tune.errors import UserError
from knee_tune.workers.group import Group

Split = Literal["valid", "test"]
R = TypeVar("R", bound=Recipe)


class Task(ABC, Generic[R]):
    """A workload. Constructing one is cheap; data is read when it is first needed.

    Randomness is stateless. ``train_batches`` draws order and augmentation from generators of its
    own, started anew for every epoch (see :mod:`seeding`); what ``build_model`` and ``loss`` draw
    (weights, dropout) comes from torch's global generators, which the loop seeds anew for every
    step. So model + optimizer + step is the whole state.
    """

    same_shapes: ClassVar[bool] = False
    """Every micro-batch of a rank has the shapes and the count of the others, and ``loss`` never
    waits for the device, so a GPU can replay a step."""

    open_dimensions: ClassVar[int] = 1
    """How many dimensions of an array of raw inputs may have any size: the batch, and others."""

    def __init__(self, recipe: R, *, data_dir: Path, seed: int) -> None:
        self.recipe = recipe
        self.data_dir = data_dir
        self.seed = seed
        self.phase_ends: tuple[int, ...] = ()
        """The last step of each phase of the run (see ``recipe.phases``); empty without phases."""

    def with_seed(self, seed: int) -> Self:
        """The same task with another random seed."""
        other = type(self)(self.recipe, data_dir=self.data_dir, seed=seed)
        other.phase_ends = self.phase_ends
        return other

    @abstractmethod
    def describe(self) -> tuple[str, dict[str, int]]:
        """Fingerprint of the data (changes whenever the data does) and examples per split."""

    @abstractmethod
    def steps_per_epoch(self, group: Group) -> int:
        """Optimizer updates per epoch for a group of this world size."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A fresh model on the CPU, initialised from torch's global generator (already seeded)."""

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard ``model`` over the ranks, in place: ``fully_shard`` of its blocks, then of itself.

        Called only where there are several ranks, before the optimizer is made; a task without this
        method trains with DistributedDataParallel. ``mesh`` has one dimension, all ranks. A rank
        that calls the model waits for all others: ``loss`` and ``evaluate`` call it as often on
        every rank.
        """
        raise NotImplementedError

    @property
    def shards(self) -> bool:
        """Whether the task has a method :meth:`shard`."""
        return type(self).shard is not Task.shard

    def build_optimizer(self, model: nn.Module) -> optim.Optimizer | None:
        """Return an optimizer of the task's own for ``model``, or None: the recipe's.

        Any of torch's or another library's, with parameter groups. The loop writes the LR of every
        step into every group, times the group's ``lr_scale``; without one, times the LR that the
        group was made with over the optimizer's own. A group's ``decay_scale``, at most 1, is its
        decay's share of the schedule's.
        """
        return None

    def state(self, model: nn.Module) -> Mapping[str, Any]:
        """Return what else the training of ``model`` changes, by name, as an average of weights.

        Whatever has ``state_dict`` and ``load_state_dict``, and is the same on every rank. It is
        saved and restored with every checkpoint; modules are moved to the model's device.
        """
        return {}

    def after_step(self, model: nn.Module, step: int) -> None:
        """Do what is due after the update of ``step`` (from 1), as moving an average."""

    def measured(self, model: nn.Module) -> nn.Module:
        """Return the module that is measured and kept: the model, or an average of its weights.

        Its weights have the names of the model's.
        """
        return model

    @abstractmethod
    def train_batches(self, start_step: int, group: Group) -> Iterator[Sequence[Any]]:
        """This rank's micro-batches for every step after ``start_step``, for ever.

        Each item holds the micro-batches of one step, ``recipe.accumulate`` at most and as many
        on every rank, on ``group.device``. One that is empty on this rank is still there; its
        loss is a zero that is connected to the model, its count 0.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        """Sum of the losses of one micro-batch and the count (examples, tokens) it sums over."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """Metrics on ``split``, the same on every rank; ``final`` adds the expensive ones (BLEU).

        Draws nothing from torch's global generators, changes nothing in the model, and calls
        ``group.alive`` at every batch: a rank without a sign of life counts as hung.

        The names are those of ``recipe.metrics``, without a split ("ppl", not "valid_ppl"). The
        model is already in eval mode and gradients are off.
        """

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Sequence[Any]) -> list[Any] | NDArray[Any]:
        """One answer per raw input (sentence, image), for the registered model.

        Answers that are numbers of one shape, as class scores are, may be an array (n, ...).
        """

    def assets(self) -> dict[str, Path]:
        """Files below ``data_dir`` (by relative name) that ``predict`` needs."""
        return {}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` into the empty ``folder`` as other programs read it.

        UserError where no other does.
        """
        raise UserError(
            f"models of {type(self).__name__} have no form that others read; knee-tune register "
            "makes one that answers"
        )

    @abstractmethod
    def examples(self) -> list[Any]:
        """A few raw inputs for ``predict``: the registered model's input example."""


def check_batch_size(size: int, *, accumulate: int, group: Group) -> None:
    """Raise UserError if a rank would get an empty micro-batch of a batch of ``size`` examples."""
    share = group.world_size * accumulate
    if size < share:
        raise UserError(
            f"recipe.batch_size={size}: fewer than ranks times recipe.accumulate ({share}), so "
            "some would have nothing to train; use a larger one"
        )


class FusableTask(Task[R]):
    """A task whose models can train as replicas of one batched model.

    Its ``loss`` and ``score`` are tensor code that ``torch.func.vmap`` can run for many models at
    once, and batches of one step have the same shapes for every random seed. Its model must be
    without state besides its weights (no BatchNorm statistics) and draw nothing while it trains (no
    dropout), which is looked at before it is fused.
    """

    @abstractmethod
    def eval_batches(self, split: Split, group: Group) -> Iterator[Any]:
        """This rank's part of ``split``, on ``group.device``; the same for every random seed."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Any) -> tuple[Mapping[str, Tensor], float]:
        """Sums of the metrics over a batch, and the count (examples) that makes them means."""

    def evaluate(
        self, model: nn.Module, group: Group, *, split: Split, final: bool
    ) -> Mapping[str, float]:
        """The mean of every metric over the split."""
        totals: dict[str, float] = {}
        examples = 0.0
        for batch in self.eval_batches(split, group):
            sums, count = self.score(model, batch)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            examples += count
            group.alive()
        *values, examples = group.sum([*totals.values(), examples])
        return dict(zip(totals, (value / examples for value in values), strict=True))


Examples = tuple[Tensor, Tensor]
"""Inputs (n, ...) as the model takes them, and labels (n,) int64."""


class Classifier(ABC):
    """A task whose model maps inputs to class scores (n, classes); named before other bases."""

    def loss(self, model: nn.Module, batch: Examples) -> tuple[Tensor, float]:
        """Summed cross-entropy and the number of examples."""
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels, reduction="sum"), len(labels)

    @abstractmethod
    def train_examples(self, group: Group, *, limit: int | None) -> Iterator[Examples]:
        """This rank's part of the training split's first ``limit`` examples, on ``group.device``.

        As they are trained on (noisy labels stay noisy), but not augmented; always the same, in
        the same order, in batches of a size that fits the device.
        """
