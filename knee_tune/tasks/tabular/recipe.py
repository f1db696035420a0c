"""The recipe of a task on a small table: a small network that finishes in a minute on a laptop."""

from typing import ClassVar, Literal

from pydantic import Field

from knee_tune.config.recipe import Epochs, Metric, Optimizer, PositiveLR, Recipe, Spec


class MlpSize(Spec):
    """A multilayer perceptron with ReLU between its layers."""

    hidden: tuple[int, ...] = Field(default=(64, 64), description="widths of the hidden layers")
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TabularRecipe(Recipe):
    """SGD with momentum on noisy labels; a task says how many examples a batch may have."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="accuracy", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "accuracy"

    epochs: Epochs = 30
    seed_lr: PositiveLR = 0.05
    optimizer: Optimizer = Optimizer(name="sgd", momentum=0.9, weight_decay=5e-4)
    batch_size: int = Field(default=16, gt=0, description="examples per step, all ranks")
    label_noise: float = Field(default=0.2, ge=0, lt=1, description="share of random labels")
    model: MlpSize = MlpSize()
    objective: Literal["loss", "accuracy"] = "accuracy"
