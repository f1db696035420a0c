"""The true Fisher of a minimum, whose largest eigenvalue is the Fisher score (section 3.2.2)."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp
from torch.nn import functional as F

from knee_tune.analysis.training_loss import flat, parts
from knee_tune.distributed.group import Group
from knee_tune.tasks.base import Examples
from knee_tune.tasks.seeding import generator


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
