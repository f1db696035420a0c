"""The recipe of the ImageNet task: the paper's ResNet-50 settings (section 5.3.1)."""

from typing import ClassVar, Literal

from pydantic import Field

from knee_tune.config.recipe import DATA_NAME, Epochs, Metric, Optimizer, PositiveLR, Recipe
from knee_tune.tasks.vision.network_choice import NetworkChoice


class ImageNetRecipe(Recipe):
    """A torchvision network on an indexed folder of images.

    ``accuracy`` is top-1 and ``top5`` top-5, both in percent. What the literature tests on,
    ImageNet's published validation images (``val/``), is the *test* split here. The *valid* split,
    which winners are chosen by, is cut from ``train/``: ``validation`` images of every class.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="accuracy", direction="maximize", percent=True),
        Metric(name="top5", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "accuracy"

    epochs: Epochs = 90
    seed_lr: PositiveLR = 0.1
    optimizer: Optimizer = Optimizer(name="sgd", momentum=0.9, weight_decay=1e-4)
    amp: bool = Field(default=True, description="bf16 autocast on a GPU; a CPU stays in float32")
    objective: Literal["loss", "accuracy", "top5"] = "accuracy"

    data: str = Field(
        default="imagenet",
        pattern=DATA_NAME,
        description="name of a prepared set: a folder in the data directory",
    )
    model: NetworkChoice = NetworkChoice(name="resnet50")
    batch_size: int = Field(default=256, gt=0, description="images per step, all ranks")
    evaluation_batch: int = Field(
        default=250, gt=0, description="images of one evaluation batch of one rank"
    )
    image_side: int = Field(
        default=224,
        gt=0,
        description="pixels; crops have this side, and images that are evaluated are first resized "
        "to 8/7 of it (256 for 224)",
    )
    validation: int = Field(
        default=50, gt=0, description="training images of every class that validate instead"
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description="processes that decode images, for every rank; None: the rank's share of the "
        "cores. They never change an image, but this number is part of what names a run",
    )
