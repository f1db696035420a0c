"""The recipe of the CIFAR-10 task: the paper's ResNet-18 (section 5.3.2)."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import DATA_NAME, Epochs, Metric, Optimizer, PositiveLR, Recipe
from knee_tune.tasks.vision.network_choice import SmallImageNetwork


class Cifar10Recipe(Recipe):
    """SGD with momentum on random crops and flips.

    The validation images are cut from the 50,000 training images, which leaves fewer to train on
    than the paper had. Metrics: ``loss`` in nats, ``accuracy`` in percent.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="accuracy", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "accuracy"

    epochs: Epochs = 200
    seed_lr: PositiveLR = 0.1
    optimizer: Optimizer = Optimizer(name="sgd", momentum=0.9, weight_decay=5e-4)
    amp: bool = Field(default=True, description="bf16 autocast on a GPU; a CPU stays in float32")
    batch_size: int = Field(default=128, gt=0, description="images per step, all ranks")
    model: SmallImageNetwork = SmallImageNetwork()
    objective: Literal["loss", "accuracy"] = "accuracy"

    data: str = Field(
        default="cifar10",
        pattern=DATA_NAME,
        description="name of a prepared set: a folder in the data directory",
    )
    validation: int = Field(
        default=5000, gt=0, description="images held out of the training images to validate on"
    )
    train_examples: int | None = Field(
        default=None, gt=0, description="train on this many of the others (all if None)"
    )
    side: Literal[32, 16, 8] = Field(
        default=32, description="images are averaged down to this many pixels a side"
    )
    crop_padding: int = Field(
        default=4, ge=0, description="black pixels around an image that random crops reach into"
    )
    flip: bool = Field(default=True, description="swap left and right of every other image")
    label_noise: float = Field(default=0.0, ge=0, lt=1, description="share of random labels")

    @model_validator(mode="after")
    def _a_batch_can_be_had(self) -> Self:
        if self.train_examples is not None and self.train_examples < self.batch_size:
            raise ValueError(
                f"train_examples={self.train_examples} must be batch_size={self.batch_size} or more"
            )
        return self
