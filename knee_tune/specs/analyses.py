"""What can be asked of a finished model: how sharp its minimum is, by two measures of the paper."""

from typing import Annotated, Literal

from pydantic import Field

from knee_tune.specs.base import Spec


class Sharpness(Spec):
    """Keskar's sharpness (equation 1), by projected gradient ascent (section 3.2.1)."""

    name: Literal["sharpness"] = "sharpness"
    epsilon: float = Field(
        default=1e-4, gt=0, description="half the box's side is epsilon * (|weight| + 1)"
    )
    lr: float = Field(default=1e-3, gt=0, description="of the ascent, in the gradient's direction")
    iterations: int = Field(default=1000, gt=0, description="ascent steps")
    examples: int | None = Field(
        default=None, gt=0, description="of the training split, the first ones; None: all of it"
    )


class Fisher(Spec):
    """The largest eigenvalue of the true Fisher information matrix (section 3.2.2)."""

    name: Literal["fisher"] = "fisher"
    samples: int = Field(default=10, gt=0, description="labels drawn from the model per example")
    iterations: int = Field(default=100, gt=0, description="matrix-vector products at most")
    tolerance: float = Field(default=1e-3, gt=0, description="relative error bound that ends them")
    examples: int | None = Field(
        default=None, gt=0, description="of the training split, the first ones; None: all of it"
    )
    seed: int = Field(default=1, ge=0, description="of the labels and the first vector")


Analysis = Annotated[Sharpness | Fisher, Field(discriminator="name")]
