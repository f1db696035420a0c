"""The Fisher score against the matrix itself, which a small model can afford."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from knee_tune.analysis.minimum import FisherMatrix, drawn_labels, flat, largest_eigenvalue
from knee_tune.workers.group import Group

CLASSES = 4


def inputs() -> Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Linear(6, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True), nn.Linear(3, CLASSES)
    )
    model(5 * inputs())  # BatchNorm has seen something
    return model.eval()


def matrix(model: nn.Module, *, samples: int, seed: int = 1, batches: int = 1) -> FisherMatrix:
    labels = torch.zeros(20, dtype=torch.int64)  # the data's labels play no part
    return FisherMatrix(
        model,
        lambda: zip(inputs().tensor_split(batches), labels.tensor_split(batches), strict=True),
        samples=samples,
        seed=seed,
        group=Group(),
    )


def jacobians(model: nn.Module) -> Tensor:
    """Derivatives of every example's class scores, (examples, classes, parameters)."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def scores(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        found: Tensor = functional_call(model, weights, (row[None],))
        return found[0]

    found = vmap(jacrev(scores), in_dims=(None, 0))(weights, inputs())
    return torch.cat([found[name].flatten(2) for name in weights], dim=2)


def exact(model: nn.Module) -> Tensor:
    """The Fisher with the expectation over labels taken exactly, (parameters, parameters)."""
    p = model(inputs()).softmax(1).detach()
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    jacobian = jacobians(model)
    return torch.einsum("ncp,ncd,ndq->pq", jacobian, middle, jacobian) / len(p)


def dense(fisher: FisherMatrix) -> Tensor:
    """A matrix that is known by its products."""
    return torch.stack([fisher @ column for column in torch.eye(fisher.size)], dim=1)


def score(fisher: FisherMatrix, *, iterations: int = 100, tolerance: float = 1e-5) -> float:
    return largest_eigenvalue(
        fisher.__matmul__, fisher.random_vector(1), iterations=iterations, tolerance=tolerance
    ).value


def test_products_are_those_with_the_outer_products_of_single_examples_gradients() -> None:
    model = network()
    fisher = matrix(model, samples=5)
    labels = torch.cat(fisher.labels)
    gradients = [
        flat(
            torch.autograd.grad(
                nn.functional.cross_entropy(model(row[None]), label[None]), [*model.parameters()]
            )
        )
        for row, drawn in zip(inputs(), labels, strict=True)
        for label in drawn
    ]
    stacked = torch.stack(gradients)
    expected = stacked.T @ stacked / len(gradients)

    assert torch.allclose(dense(fisher), expected, atol=1e-5 * float(expected.abs().max()))
    assert score(fisher) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-4)


def test_more_samples_come_closer_to_the_exact_expectation() -> None:
    model = network()
    expected = exact(model)
    few, many = (
        float((dense(matrix(model, samples=samples)) - expected).norm() / expected.norm())
        for samples in (2, 800)
    )

    assert many < 0.05 < few
    assert score(matrix(model, samples=800)) == pytest.approx(
        float(torch.linalg.eigvalsh(expected)[-1]), rel=0.05
    )


def test_labels_are_drawn_once_from_a_seed() -> None:
    model = network()
    vector = torch.ones(matrix(model, samples=1).size)
    first, again, other = (matrix(model, samples=3, seed=seed) @ vector for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_cut_into_batches_changes_nothing() -> None:
    model = network()
    whole, cut = (score(matrix(model, samples=10, batches=batches)) for batches in (1, 7))
    assert whole == pytest.approx(cut, rel=1e-4)


def test_labels_come_as_often_as_the_model_expects_them() -> None:
    p = torch.tensor([[0.0, 0.1, 0.6, 0.3]])
    uniform = torch.rand(
        1, 100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    uniform[0, 0] = 0.0
    drawn = drawn_labels(p.log(), uniform)

    shares = drawn.flatten().bincount(minlength=4) / 100_000
    assert torch.allclose(shares, p[0], atol=0.01)
    assert shares[0] == 0  # impossible classes are never drawn


# Lanczos


def test_the_largest_eigenvalue_of_a_known_matrix() -> None:
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(50, 50))
    known = basis @ torch.diag(torch.linspace(0, 3, 50)) @ basis.T

    found = largest_eigenvalue(known.__matmul__, torch.randn(50), iterations=100, tolerance=1e-4)
    assert found.sure
    assert found.value == pytest.approx(3.0, rel=1e-4)


def test_it_says_when_it_ended_too_early() -> None:
    torch.manual_seed(0)
    known = torch.diag(torch.linspace(0, 3, 50))

    found = largest_eigenvalue(known.__matmul__, torch.randn(50), iterations=3, tolerance=1e-4)
    assert not found.sure
    assert 0 < found.value < 3.0


def test_it_ends_as_soon_as_it_is_sure() -> None:
    products = 0

    def rank_one(vector: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return 5 * vector.mean() * torch.ones(1000)

    found = largest_eigenvalue(rank_one, torch.randn(1000), iterations=100, tolerance=1e-3)
    assert found.value == pytest.approx(5.0, rel=1e-3)
    assert products <= 3


def test_a_matrix_of_zeros() -> None:
    found = largest_eigenvalue(torch.zeros_like, torch.ones(5), iterations=9, tolerance=0.1)
    assert (found.value, found.sure) == (0, True)
