"""What the training loop trains: a single model, or the replicas of a fused run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Finished(NamedTuple):
    """A replica at its end."""

    metrics: Mapping[str, float]
    """Of the kept weights, with the dear ones."""
    weights: Path


class Learner(Protocol):
    """Models on their way. Replicas are named by their place in the plan; a single model is 0.

    Every method is called on every rank at the same step and answers the same on every rank.
    """

    @property
    def first_steps(self) -> Mapping[int, int]:
        """Where each replica left another one that was trained for both; 0 if it never did."""
        ...

    def update(self, step: int) -> None:
        """One optimizer update of every replica that still trains."""
        ...

    def lost(self, *, thorough: bool = False) -> list[int]:
        """Replicas whose training loss or gradient is not finite; ``thorough``: or weights."""
        ...

    def measure(self, step: int) -> dict[int, dict[str, float]]:
        """Validation metrics, the mean training loss since the last call, and the LR, of each."""
        ...

    def keep(self, replicas: Iterable[int]) -> None:
        """Keep the weights that these have now."""
        ...

    def leave(self, replicas: Iterable[int], step: int) -> None:
        """These train no more; the others do not notice."""
        ...

    def finish(self) -> dict[int, Finished]:
        """Measure the kept weights of each that still trains, and write them to their files."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on besides its number; whole on rank 0 alone."""
        ...

    def load(self, state: Mapping[str, Any], weights: Path | None) -> None:
        """Take over what :meth:`state` gave, and the kept weights of then."""
        ...

    def kept_weights(self) -> Path | None:
        """The file with the kept weights, if they are no part of the state; rank 0's to ask."""
        ...
