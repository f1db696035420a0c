"""The training loss as a function of the weights: what the analyses of a minimum look at."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from knee_tune.distributed.group import Group
from knee_tune.tasks.base import Examples


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
