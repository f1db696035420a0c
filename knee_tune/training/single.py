"""One model, trained by all ranks together (DistributedDataParallel).

On a GPU the forward and backward passes of a step are replayed as one CUDA graph.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from knee_tune.config.study import TrunkFile
from knee_tune.errors import UserError
from knee_tune.plans.plan import TrainPlan
from knee_tune.tasks.base import Task
from knee_tune.tasks.seeding import seed_step, stream_seed
from knee_tune.training.checkpoint import WEIGHTS, save_weights, take_weights
from knee_tune.training.learner import Finished, autocast, evaluate
from knee_tune.training.optimizer import optimizer_of, write_lrs
from knee_tune.training.trunk_file import load_trunk
from knee_tune.workers.group import Group

Backward = Callable[[Sequence[Any]], Tensor]
"""Turns the micro-batches of one step into gradients, and gives back sums that say of what."""

LAUNCHED_STEPS = 3
"""Steps that train kernel by kernel before one is recorded: by then cuDNN has chosen its
convolutions and ``torch.compile`` has compiled, which a recording cannot."""


class SingleModel:
    """See :class:`~knee_tune.training.learner.Learner`."""

    mesh: tuple[int, ...] = ()

    def __init__(self, task: Task[Any], plan: TrainPlan, group: Group) -> None:
        self._task, self._plan, self._group = task, plan, group
        torch.manual_seed(stream_seed(plan.seed, "model"))
        self.model = self._built()
        self.optimizer = optimizer_of(task, self.model)
        self.others = _with_states(task, self.model, group)
        """What else the task's training changes."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=group.device)
        """Of the training losses and of what they sum over, since the last look."""
        self._kept: nn.Module | None = None
        """With the weights to keep; on rank 0 only."""
        self._kept_file: Path | None = None
        """Where they are written, if they are."""
        self._window: deque[dict[str, Tensor]] = deque()
        """Weights whose mean is to be kept, the newest last; on rank 0 only."""
        self._wrapped: nn.Module | None = None
        self._compiled: nn.Module | None = None
        self._batches: Any = None
        # who watches looks into every forward pass, which a replay has none of
        same = task.same_shapes and not plan.watched
        self._backward: Backward = replayed(self._accumulate, group, same_shapes=same)

    @property
    def first_steps(self) -> Mapping[int, int]:
        """Return 0 for the one model: it shares no step."""
        return {0: 0}

    def update(self, step: int) -> None:
        """Train step ``step`` (from 1): gradients over the global count, then clipped.

        Nothing in here waits for the device: what happened is looked at now and then.
        """
        if self._batches is None:
            self._batches = self._task.train_batches(step - 1, self._group)
        write_lrs(self.optimizer, self._plan.schedule, step)
        seed_step(self._group.device, self._plan.seed, self._group.rank, step)
        sums = self._group.sum_tensor(self._backward(next(self._batches)))
        self._scale_and_clip(self._group.world_size / sums[1].clamp(min=1))
        self.optimizer.step()
        if self.others:  # an average takes in buffers too, and is to be the same on every rank
            self._share_buffers()
        with torch.no_grad():
            self._task.after_step(self.model, step)
        self._sums += sums

    def _accumulate(self, micro_batches: Sequence[Any]) -> Tensor:
        """Compute the gradients of the summed losses; their sum and count, (2,) float64."""
        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self._group.device)
        for index, batch in enumerate(micro_batches):
            with self._sync_gradients(last=index == len(micro_batches) - 1):
                with autocast(self._plan.placement):
                    loss, count = self._task.loss(self._trained, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            sums[0].add_(loss.detach())
            sums[1].add_(count)
        return sums

    def lost(self, *, thorough: bool = False) -> list[int]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        return [] if bool(self._seen_sums().isfinite().all()) else [0]

    def measure(self, step: int) -> dict[int, dict[str, float]]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        train_loss = self.take_train_loss()
        self._share_buffers()
        metrics = self._evaluate(self._task.measured(self.model), final=False)
        self._parallel.train()
        return {
            0: {
                "lr": self._plan.schedule.lr(step),
                "train_loss": train_loss,
                **metrics,
            }
        }

    def take_train_loss(self) -> float:
        """The mean training loss since the last look; waits for the device."""
        loss, count = self._seen_sums().tolist()
        self._sums.zero_()
        return float(loss / max(1.0, count))

    def keep(self, replicas: Iterable[int], *, mean_of: int = 1) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if not any(True for _ in replicas) or not self._group.leads:
            return
        measured = self._task.measured(self.model)
        if mean_of > 1:
            while len(self._window) >= mean_of:
                self._window.popleft()
            self._window.append(
                {name: value.cpu().clone() for name, value in measured.state_dict().items()}
            )
            return
        if self._kept is None:
            self._kept = copy.deepcopy(measured)
        now, kept = measured.state_dict().values(), self._kept.state_dict().values()
        torch._foreach_copy_([*kept], [*now])
        self._kept_file = None

    def leave(self, replicas: Iterable[int]) -> None:
        """Do nothing: there are no other replicas."""

    def finish(self) -> dict[int, Finished]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if self._group.leads:
            if self._window:
                self._kept = copy.deepcopy(self._task.measured(self.model))
                self._kept.load_state_dict(mean_weights(self._window))
                self._kept_file = None
            self.kept_weights()
        self._group.barrier()
        load_model(self.model, self._weights)
        return {0: Finished(self._evaluate(self.model, final=True), self._weights)}

    def state(self) -> dict[str, Any]:
        """See :class:`~knee_tune.training.learner.Learner`."""
        others = {name: each.state_dict() for name, each in self.others.items()}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train_sums": self._sums,
            **({"others": others} if others else {}),
            **({"window": [*self._window]} if self._window else {}),
        }

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, each in self.others.items():
            each.load_state_dict(state["others"][name])
        self._sums.copy_(state["train_sums"])
        self._window = deque(state.get("window", ()) if self._group.leads or self.mesh else ())
        if weights is not None and self._group.leads:
            take_weights(self._weights, weights)
            self._kept_file = self._weights

    def go_on_from(self, file: TrunkFile) -> None:
        """See :class:`~knee_tune.training.learner.Learner`."""
        if self.others:
            raise UserError(
                f"`trunk` {file.path}: this task trains more than model and optimizer "
                f"({', '.join(self.others)}), which no such file has"
            )
        load_trunk(file, self.model, self.optimizer)

    def kept_weights(self) -> Path | None:
        """See :class:`~knee_tune.training.learner.Learner`. Written now if they have changed."""
        if self._kept_file is None and self._kept is not None:
            save_weights(self._weights, self._kept)
            self._kept_file = self._weights
        return self._kept_file

    def _built(self) -> nn.Module:
        return self._task.build_model().to(self._group.device)

    @property
    def _weights(self) -> Path:
        return self._plan.checkpoint_dir / WEIGHTS

    @property
    def _parallel(self) -> nn.Module:
        """The model among its peers; made when it first trains, its state is loaded by then."""
        if self._wrapped is None:
            self._wrapped = _among_peers(self.model, self._group)
        return self._wrapped

    @property
    def _trained(self) -> nn.Module:
        """The model as the loss sees it.

        A compiled one has other names for the same parameters. Evaluation and checkpoints use the
        bare one: its names are those of every other run, and batches of another size compile
        nothing anew.
        """
        if self._compiled is None:
            self._compiled = self._parallel
            if self._plan.placement.compile:
                self._compiled = cast(nn.Module, torch.compile(self._parallel))
        return self._compiled

    def _evaluate(self, model: nn.Module, *, final: bool) -> dict[str, float]:
        return evaluate(
            self._task,
            model,
            self._group,
            placement=self._plan.placement,
            split="valid",
            final=final,
        )

    def _seen_sums(self) -> Tensor:
        """The sums; a lost gradient, which the weights keep, shows in them as a lost loss does."""
        return self._sums + 0 * nn.utils.get_total_norm(self.model.parameters())

    def _scale_and_clip(self, scale: Tensor) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, scale.float())
        if self._task.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._task.recipe.clip_norm)

    def _share_buffers(self) -> None:
        """Give every rank rank 0's BatchNorm statistics, which each of them gathered on its own.

        They are the ones that are saved and that the next step starts from on every rank.
        """
        if (
            isinstance(self._parallel, DistributedDataParallel)
            and self._parallel.will_sync_module_buffers()  # type: ignore[no-untyped-call]
        ):
            self._parallel._sync_buffers()  # type: ignore[no-untyped-call]

    def _sync_gradients(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once per step, in the backward pass of its last micro-batch."""
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self._parallel.no_sync())


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of every weight and running statistic; what counts whole numbers is the last's."""
    *_, last = states
    return {
        name: torch.stack([each[name] for each in states]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in last.items()
    }


def _with_states(task: Task[Any], model: nn.Module, group: Group) -> Mapping[str, Any]:
    """Return the task's further state, on the device; UserError for what cannot be saved."""
    found = dict(task.state(model))
    for name, each in found.items():
        if not (hasattr(each, "state_dict") and hasattr(each, "load_state_dict")):
            raise UserError(
                f"state {name!r} is a {type(each).__name__}; give something with state_dict and "
                "load_state_dict, as a module has them"
            )
        if isinstance(each, nn.Module):
            each.to(group.device)
    return found


def _among_peers(model: nn.Module, group: Group) -> nn.Module:
    """The model in DistributedDataParallel when there are peers.

    It cuts its buckets anew after the first step, unless it looks for unused parameters, and the
    bits that three or more ranks sum up depend on the cut. So on a CPU, where a resumed run must
    have the bits of one that never stopped, it has to look for them.
    """
    if group.world_size == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=group.device.type == "cpu")


def replayed(backward: Backward, group: Group, *, same_shapes: bool) -> Backward:
    """Return ``backward`` as one replay per step where a GPU can replay it, else as it is.

    Ranks exchange their gradients in ``backward``, which is left out of graphs; and batches of many
    shapes would need a graph, and its memory, for each.
    """
    graphs = group.device.type == "cuda" and group.world_size == 1 and same_shapes
    return StepGraph(backward) if graphs else backward


class StepGraph:
    """Replays what ``backward`` did in a step that it recorded.

    A step of a small network is hundreds of kernels of some microseconds each, which one thread of
    Python cannot launch as fast as a GPU runs them. A graph launches them at once.

    What a replay reads and writes lies where the recording left it: batches are copied in, the
    gradients stay the same tensors, and parameters must too. Random numbers follow the generator as
    they do without a graph.
    """

    def __init__(self, backward: Backward) -> None:
        self._backward = backward
        self._launched = 0
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._sums = torch.empty(0)

    def __call__(self, micro_batches: Sequence[Any]) -> Tensor:
        """Replay a step, or launch it and record it; the sums are valid until the next call."""
        if self._launched < LAUNCHED_STEPS:
            self._launched += 1
            return self._launch(micro_batches)
        if self._graph is None:
            self._graph = self._record(micro_batches)
        torch._foreach_copy_(self._inputs, _tensors(micro_batches))
        self._graph.replay()
        return self._sums

    def _launch(self, micro_batches: Sequence[Any]) -> Tensor:
        """Run on the stream that will be recorded: autograd holds on to the one it began on."""
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            sums = self._backward(micro_batches)
        here.wait_stream(self._stream)
        return sums

    def _record(self, micro_batches: Sequence[Any]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        inputs = pytree.tree_map_only(Tensor, torch.clone, list(micro_batches))
        # Other threads may go on with what a recording forbids: a loader's pins its memory.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._sums = self._backward(inputs)
        self._inputs = _tensors(inputs)
        return graph


def _tensors(micro_batches: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(list(micro_batches)) if isinstance(leaf, Tensor)]
