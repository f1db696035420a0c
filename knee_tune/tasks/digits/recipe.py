"""The recipe of the digits task: a small network that finishes in a minute on a laptop."""

from typing import ClassVar, Literal

from pydantic import Field

from knee_tune.specs.base import Spec
from knee_tune.specs.recipe import Metric, Optimizer, Recipe


class MlpSize(Spec):
    """A multilayer perceptron on 64 pixels with ReLU between its layers."""

    hidden: tuple[int, ...] = Field(default=(64, 64), description="widths of the hidden layers")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class DigitsRecipe(Recipe):
    """scikit-learn's 8x8 digits with label noise and one-pixel shifts.

    Noise and shifts are what makes exploring pay: without them the longest explore always wins.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="accuracy", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "accuracy"

    epochs: int = Field(default=30, gt=0, description="training budget, in epochs")
    seed_lr: float = Field(default=0.05, gt=0)
    optimizer: Optimizer = Optimizer(name="sgd", momentum=0.9, weight_decay=5e-4)
    batch_size: int = Field(default=16, gt=0, le=800, description="examples per step, all ranks")
    label_noise: float = Field(default=0.2, ge=0, lt=1, description="share of random labels")
    shift: int = Field(default=1, ge=0, le=3, description="largest shift of an image, in pixels")
    model: MlpSize = MlpSize()
    objective: Literal["loss", "accuracy"] = "accuracy"
