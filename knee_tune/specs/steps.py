"""Steps of a training run: trained, taken over, never needed."""

from typing import Self

from pydantic import Field

from knee_tune.specs.base import Spec


class StepCount(Spec):
    """What one or several runs cost, counted over all attempts.

    Without crashes ``trained + reused`` is ``reached``; steps that an attempt lost and another
    trained again count twice in ``trained``.
    """

    trained: int = Field(default=0, ge=0, description="by this trial itself")
    reused: int = Field(default=0, ge=0, description="from a trunk, or from a run's record")
    reached: int = Field(default=0, ge=0, description="the last step whose state is known")

    def after(self, *, first: int, last: int) -> Self:
        """With another attempt of the same run, which started from ``first`` and got to ``last``.

        What it did not have to train although no attempt before had reached it was reused.
        """
        return self.model_copy(
            update={
                "trained": self.trained + last - first,
                "reused": self.reused + max(0, first - self.reached),
                "reached": max(last, self.reached),
            }
        )

    def of_replica(self, *, first: int, last: int) -> Self:
        """What one replica of a fused run of this count cost, whose last step was ``last``.

        Up to the step ``first`` another replica was trained for it as well. What the run lost and
        trained again, every replica did.
        """
        reused = min(max(self.reused, first), last)
        lost = max(0, self.trained + self.reused - self.reached)
        return self.model_copy(
            update={"trained": last - reused + lost, "reused": reused, "reached": last}
        )

    def __add__(self, other: Self) -> Self:
        """Of two different runs together."""
        return self.model_copy(
            update={
                "trained": self.trained + other.trained,
                "reused": self.reused + other.reused,
                "reached": self.reached + other.reached,
            }
        )
