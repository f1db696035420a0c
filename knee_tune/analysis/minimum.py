"""Measure a minimum of a task's training loss, as a plan asks."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn import functional as F

from knee_tune.config.recipe import task_slug
from knee_tune.config.study import Fisher, Sharpness
from knee_tune.errors import UserError
from knee_tune.plans.plan import AnalysePlan
from knee_tune.tasks.base import Classifier, Examples, Task
from knee_tune.tasks.seeding import generator
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel

# The largest eigenvalue of a symmetric matrix of which only products with vectors are known.


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """What was found."""

    value: float
    sure: bool
    """Within the tolerance; otherwise the largest eigenvalue is at least ``value``."""


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, *, iterations: int, tolerance: float
) -> Eigenvalue:
    """By Lanczos' method: ``iterations`` products at most, fewer once the result is sure.

    It is sure when the residual, which bounds the distance to the nearest eigenvalue, is at most
    ``tolerance`` times the result. ``start`` (n,) is any vector, random best. Keeps two vectors of
    its kind; without the others the basis loses its orthogonality in time, which repeats
    eigenvalues that were found but invents none.
    """
    before, vector = torch.zeros_like(start), start / _norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    value, sure = 0.0, False
    for _ in range(iterations):
        image = product(vector)
        if beside:
            image = image.sub(before, alpha=beside[-1])
        diagonal.append(_dot(image, vector))
        image = image.sub(vector, alpha=diagonal[-1])
        norm = _norm(image)
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        value = float(values[-1])
        sure = norm * abs(float(vectors[-1, -1])) <= tolerance * abs(value)
        if sure or not math.isfinite(value):
            break
        before, vector = vector, image / norm
        beside.append(norm)
    return Eigenvalue(value=value, sure=sure)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    middle = torch.tensor(diagonal, dtype=torch.float64)
    if not beside:
        return middle[:, None]
    next_to = torch.tensor(beside, dtype=torch.float64)
    return torch.diag(middle) + torch.diag(next_to, 1) + torch.diag(next_to, -1)


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


# The training loss as a function of the weights: what the analyses of a minimum look at.


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements one after the other, (sum of sizes,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """``vector`` cut into views of the shapes of ``like``."""
    cut = torch.split(vector, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(cut, like, strict=True)]


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 as it is, and the same every time.

    A box of 1e-4 around the weights is lost in a GPU's TF32, and convolutions that are chosen by
    timing them are others in the next process.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled,
            benchmark=False,
            deterministic=True,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class TrainingLoss:
    """F of equation 1: the mean of ``loss`` over examples of the training split, in eval mode.

    ``batches`` gives this rank's examples, each time the same; ``loss`` the sum over a batch and
    what it counts (see ``Task.loss``). BatchNorm uses its running statistics and nothing is drawn.
    It must be called on all ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Examples], tuple[Tensor, float]],
        batches: Callable[[], Iterable[Examples]],
        *,
        group: Group,
    ) -> None:
        self._model, self._loss, self._batches, self._group = model, loss, batches, group
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    @torch.enable_grad()
    def __call__(self) -> tuple[float, Tensor]:
        """The loss at the weights that the model has now, and its gradient, (parameters,)."""
        self._model.eval()
        gradient = torch.zeros_like(flat(self.parameters)).detach()
        sums = torch.zeros(2, dtype=torch.float64, device=self._group.device)
        for batch in self._batches():
            self._group.alive()
            loss, count = self._loss(self._model, batch)
            gradient += flat(torch.autograd.grad(loss, self.parameters))
            sums += torch.stack([loss.detach().double(), sums.new_full((), count)])
        loss_sum, total = self._group.sum_tensor(sums).tolist()
        return loss_sum / total, self._group.sum_tensor(gradient) / total


# The true Fisher of a minimum, whose largest eigenvalue is the Fisher score (section 3.2.2).


class FisherMatrix:
    """F = 1/(N K) sum_n sum_k g_nk g_nk^T with g_nk the gradient of -log p(y_nk | x_n).

    The K labels y_nk of every example are drawn from the model's own p(y | x_n): an unbiased
    estimate of the true Fisher, not the "empirical" one of the data's labels (Kunstner et al.,
    2019). They are drawn once, so this is one fixed matrix.

    With J_n the derivative of the class scores, g_nk = J_n^T (p_n - onehot(y_nk)). So F v needs one
    forward-mode and one reverse-mode pass over the examples, whatever K is, and no gradient of a
    single example. ``batches`` gives this rank's examples, each time the same; every method must be
    called on all ranks. The model must be in eval mode.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterable[Examples]],
        *,
        samples: int,
        seed: int,
        group: Group,
    ) -> None:
        self._model, self._batches, self._group = model, batches, group
        self._weights = {name: p.detach() for name, p in model.named_parameters()}
        self._shapes = list(self._weights.values())
        self.size = sum(p.numel() for p in self._shapes)
        """Parameters, the side of the matrix."""
        draw = generator(seed, "fisher labels", group.rank)
        self.labels: list[Tensor] = []
        """Those drawn, (n, samples) for every batch."""
        with torch.no_grad():
            for inputs, _ in batches():
                group.alive()
                uniform = torch.rand(len(inputs), samples, generator=draw, dtype=torch.float64)
                self.labels.append(drawn_labels(model(inputs), uniform.to(inputs.device)))
        drawn = sum(labels.shape[0] for labels in self.labels)
        self._examples = int(group.sum([drawn])[0])

    def __matmul__(self, vector: Tensor) -> Tensor:
        """F v, for v (parameters,)."""
        direction = dict(zip(self._weights, parts(vector, self._shapes), strict=True))
        total = torch.zeros_like(vector)
        for (inputs, _), labels in zip(self._batches(), self.labels, strict=True):
            self._group.alive()

            def scores(weights: dict[str, Tensor], inputs: Tensor = inputs) -> Tensor:
                found: Tensor = functional_call(self._model, weights, (inputs,))
                return found

            with warnings.catch_warnings():  # torch warns of its own use of torch.jit
                warnings.simplefilter("ignore", FutureWarning)
                forward = jvp(scores, (self._weights,), (direction,))
            backward = vjp(scores, self._weights)
            (pulled,) = backward[1](outer_products(forward[0], labels, forward[1]))
            total += flat([pulled[name] for name in self._weights])
        return self._group.sum_tensor(total) / self._examples

    def random_vector(self, seed: int) -> Tensor:
        """A vector (parameters,) to start from, the same on every rank and device."""
        draw = generator(seed, "fisher vector")
        return torch.randn(self.size, generator=draw).to(self._group.device)


def drawn_labels(scores: Tensor, uniform: Tensor) -> Tensor:
    """Labels (n, K) from the model's p(y | x), by inversion of ``uniform`` (n, K) in [0, 1)."""
    edges = scores.double().softmax(1).cumsum(1)
    labels = torch.searchsorted(edges, uniform * edges[:, -1:], right=True)
    return labels.clamp_(max=scores.shape[1] - 1)


def outer_products(scores: Tensor, labels: Tensor, change: Tensor) -> Tensor:
    """For every example the mean over its labels of (p - e_y) (p - e_y)^T times its ``change``.

    ``scores`` and ``change`` (n, classes), ``labels`` (n, K); the result is as the scores are.
    """
    p = scores.softmax(1)
    along = (p * change).sum(1, keepdim=True) - change  # (p - e_y) . change, for every y
    # Counted, not scattered: a GPU adds up what is scattered in another order every time.
    share = F.one_hot(labels, scores.shape[1]).sum(1) / labels.shape[1]
    drawn = share * along
    return p * drawn.sum(1, keepdim=True) - drawn


# Keskar's sharpness of a minimum (section 3.2.1, equation 1), by projected gradient ascent.


@dataclass(frozen=True, kw_only=True)
class Sharp:
    """How sharp a minimum is."""

    value: float
    """(highest - loss) / (1 + loss) * 100"""
    loss: float
    """F at the weights themselves."""
    highest: float
    """The largest F found in the box."""
    stuck: bool
    """The gradient at the weights is exactly 0: the ascent could not leave them."""


@torch.no_grad()
def sharpness(
    loss: Callable[[], tuple[float, Tensor]],
    parameters: Sequence[Tensor],
    *,
    settings: Sharpness,
) -> Sharp:
    """How far F can rise within the box |y_i| <= epsilon * (|x_i| + 1) around the weights x.

    ``loss`` gives F at the present values of ``parameters``, and its gradient, flat. The ascent
    starts at y = 0 and takes plain steps ``y += lr * gradient``, each projected back into the box;
    the largest F on the way counts. It draws nothing, so it is the same every time. The
    parameters have their values back afterwards, whatever happens.
    """
    x = flat(parameters)
    bound = settings.epsilon * (x.abs() + 1)
    # Held apart from x: what is added in one step would be lost in the rounding of x + y.
    y = torch.zeros_like(x)
    try:
        start, gradient = loss()
        stuck = not bool(gradient.any())
        highest = start
        for _ in range(0 if stuck else settings.iterations):
            y.add_(gradient, alpha=settings.lr).clamp_(-bound, bound)
            _write(parameters, x + y)
            here, gradient = loss()
            highest = max(highest, here)
    finally:
        _write(parameters, x)
    value = (highest - start) / (1 + start) * 100
    return Sharp(value=value, loss=start, highest=highest, stuck=stuck)


def _write(parameters: Sequence[Tensor], values: Tensor) -> None:
    for parameter, value in zip(parameters, parts(values, parameters), strict=True):
        parameter.copy_(value)


def analyse(
    task: Task[Any], plan: AnalysePlan, model: nn.Module, group: Group, channel: Channel
) -> dict[str, float]:
    """``sharpness`` and the ``loss`` it starts from, or ``fisher``; the same on every rank.

    The channel is told the number of looks at the whole sample so far. UserError if the task is no
    :class:`Classifier`.
    """
    if not isinstance(task, Classifier):
        raise UserError(
            f"task {task_slug(plan.task)}: {plan.analysis.name} asks how sure the model is of "
            "classes, and this task has none; choose one that does, such as digits or cifar10"
        )
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1

    watched = replace(group, alive=lambda: channel.progress(looks))
    model.eval()
    batches = partial(task.train_examples, watched, limit=plan.analysis.examples)
    with full_precision():
        match plan.analysis:
            case Sharpness() as settings:
                loss = TrainingLoss(model, task.loss, batches, group=watched)

                def ascended() -> tuple[float, Tensor]:
                    look()
                    return loss()

                sharp = sharpness(ascended, loss.parameters, settings=settings)
                if sharp.stuck and group.leads:
                    channel.line("the gradient at these weights is exactly 0: nothing to ascend")
                return {"sharpness": sharp.value, "loss": sharp.loss}
            case Fisher() as settings:
                matrix = FisherMatrix(
                    model, batches, samples=settings.samples, seed=settings.seed, group=watched
                )

                def multiplied(vector: Tensor) -> Tensor:
                    look()
                    return matrix @ vector

                found = largest_eigenvalue(
                    multiplied,
                    matrix.random_vector(settings.seed),
                    iterations=settings.iterations,
                    tolerance=settings.tolerance,
                )
                if not found.sure and group.leads:
                    channel.line(
                        f"not settled after {settings.iterations} products: the largest eigenvalue "
                        "is at least what was found"
                    )
                return {"fisher": found.value}
