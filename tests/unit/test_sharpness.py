"""Keskar's sharpness: values known by hand, and a second-order method that maximises the same."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from knee_tune.analysis.minimum import TrainingLoss, flat, full_precision, parts, sharpness
from knee_tune.config.study import Sharpness
from knee_tune.tasks.base import Examples
from knee_tune.workers.group import Group

SHIFT = torch.tensor([0.5, -2.0])


class Quadratic:
    """F(w) = |w - SHIFT|^2, whose maximum in a box is at the corner that points away from SHIFT."""

    def __init__(self, *start: float) -> None:
        self.weights = torch.tensor(start)
        self.calls = 0

    def __call__(self) -> tuple[float, Tensor]:
        self.calls += 1
        away = self.weights - SHIFT
        return float((away.double() ** 2).sum()), 2 * away


def test_it_finds_the_corner_of_the_box() -> None:
    loss = Quadratic(1.0, 1.0)
    found = sharpness(loss, [loss.weights], settings=Sharpness(epsilon=0.01, lr=0.1, iterations=20))

    half = 0.01 * (1.0 + 1)  # epsilon * (|weight| + 1)
    highest = (0.5 + half) ** 2 + (3.0 + half) ** 2
    assert found.loss == pytest.approx(9.25)
    assert found.highest == pytest.approx(highest, rel=1e-6)
    assert found.value == pytest.approx((highest - 9.25) / (1 + 9.25) * 100, rel=1e-5)


def test_a_wider_box_where_the_weight_is_larger() -> None:
    loss = Quadratic(9.0, -2.0)
    found = sharpness(loss, [loss.weights], settings=Sharpness(epsilon=0.01, lr=0.1, iterations=20))

    assert found.highest == pytest.approx((8.5 + 0.01 * 10) ** 2, rel=1e-6)


def test_one_plain_gradient_step_that_stays_in_the_box() -> None:
    loss = Quadratic(1.0, -2.0)
    found = sharpness(loss, [loss.weights], settings=Sharpness(epsilon=1, lr=0.01, iterations=1))

    assert found.highest == pytest.approx((0.5 + 0.01 * 1.0) ** 2, rel=1e-5)
    assert loss.calls == 2


def test_steps_smaller_than_the_rounding_of_the_weights_add_up() -> None:
    loss = Quadratic(1000.0, -2.0)  # float32 has no value between 1000 and 1000.00006
    found = sharpness(loss, [loss.weights], settings=Sharpness(epsilon=1, lr=1e-8, iterations=100))

    assert found.highest - found.loss > 1.5 * 999.5 * 1e-8 * 100 * 2 * 999.5


def test_the_weights_have_their_values_back() -> None:
    loss = Quadratic(1.0, 1.0)
    sharpness(loss, [loss.weights], settings=Sharpness(iterations=3))
    assert torch.equal(loss.weights, torch.tensor([1.0, 1.0]))

    calls = iter(range(3))

    def breaks() -> tuple[float, Tensor]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return loss()

    with pytest.raises(KeyboardInterrupt):
        sharpness(breaks, [loss.weights], settings=Sharpness())
    assert torch.equal(loss.weights, torch.tensor([1.0, 1.0]))


def test_no_gradient_no_ascent() -> None:
    loss = Quadratic(*SHIFT.tolist())
    found = sharpness(loss, [loss.weights], settings=Sharpness())

    assert (found.value, found.stuck, loss.calls) == (0.0, True, 1)


def test_the_highest_loss_on_the_way_counts_not_the_last() -> None:
    weights = torch.zeros(1)
    values = iter([1.0, 3.0, 2.0])
    found = sharpness(
        lambda: (next(values), torch.ones(1)), [weights], settings=Sharpness(iterations=2)
    )
    assert found.value == pytest.approx((3.0 - 1.0) / (1 + 1.0) * 100)


def test_a_gpu_computes_in_float32_itself() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)


# The training loss of a model


def examples() -> Examples:
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 5, generator=draw)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def training_loss(model: nn.Module, *, batches: int) -> TrainingLoss:
    inputs, labels = examples()

    def loss(model: nn.Module, batch: Examples) -> tuple[Tensor, float]:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    return TrainingLoss(
        model,
        loss,
        lambda: zip(inputs.tensor_split(batches), labels.tensor_split(batches), strict=True),
        group=Group(),
    )


def test_the_training_loss_is_a_mean_over_all_batches_in_eval_mode() -> None:
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    value, gradient = training_loss(model, batches=7)()  # not all of one size

    inputs, labels = examples()
    expected = F.cross_entropy(model.eval()(inputs), labels)
    wanted = flat(torch.autograd.grad(expected, list(model.parameters())))
    assert value == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(gradient, wanted, atol=1e-6)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_it_is_the_same_every_time() -> None:
    found = [
        sharpness(loss, loss.parameters, settings=Sharpness(iterations=10)).value
        for loss in (training_loss(network(), batches=2) for _ in range(2))
    ]
    assert found[0] == found[1] > 0


def test_a_second_order_method_finds_nothing_higher() -> None:
    """The paper compared with L-BFGS-B, which Keskar et al. used."""
    loss = training_loss(network(), batches=1)
    settings = Sharpness(epsilon=1e-3, lr=0.1, iterations=300)
    ours = sharpness(loss, loss.parameters, settings=settings)

    start = flat(loss.parameters).detach().double().numpy()
    half = 1e-3 * (np.abs(start) + 1)

    def falling(point: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        values = parts(torch.from_numpy(point).float(), loss.parameters)
        for parameter, value in zip(loss.parameters, values, strict=True):
            parameter.data.copy_(value)
        height, gradient = loss()
        return -height, -gradient.double().numpy()

    theirs = minimize(
        falling,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([start - half, start + half], axis=1),
    )
    assert ours.highest - ours.loss == pytest.approx(-theirs.fun - ours.loss, rel=1e-3)
