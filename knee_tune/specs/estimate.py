"""A number over random seeds, and how sure it is."""

from typing import Self

from pydantic import AliasChoices, Field

from knee_tune.specs.base import Spec
from knee_tune.specs.recipe import Direction


class Estimate(Spec):
    """A number and its interval over random seeds (without one: fewer than two seeds).

    Of a mean it is Student's t interval, of anything else a bootstrap that resamples seeds.
    """

    # Confirmations that were stored earlier have a ``mean``.
    value: float = Field(validation_alias=AliasChoices("value", "mean"))
    low: float | None = None
    high: float | None = None
    level: float = Field(
        default=0.95, gt=0, lt=1, description="probability that the interval holds the true number"
    )

    def bounded(self, *, percent: bool) -> Self:
        """Itself; of a metric in ``percent`` the interval ends at 0 and at 100."""
        if not percent or self.low is None or self.high is None:
            return self
        return self.model_copy(update={"low": max(0.0, self.low), "high": min(100.0, self.high)})

    @property
    def side(self) -> int:
        """1 where all of the interval is above zero, -1 where it is below; 0: it may be chance."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0) - (self.high < 0)

    def is_better(self, direction: Direction) -> bool:
        """Whether, as a difference, all of it is on the better side of zero."""
        return self.side == (-1 if direction == "minimize" else 1)
