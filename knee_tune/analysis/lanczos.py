"""The largest eigenvalue of a symmetric matrix of which only products with vectors are known."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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
