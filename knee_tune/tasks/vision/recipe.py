"""Recipes of the tasks on images: the paper's CIFAR-10 and ImageNet settings, without torch."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import DATA_NAME, Epochs, Metric, Optimizer, PositiveLR, Recipe, Spec

Stem = Literal["cifar", "imagenet"]

_RESNET = re.compile(r"(wide_)?resnet\d|resnext\d")
PUBLISHED_WIDTH = 64
"""Channels of the first stage of every published ResNet."""

_NARROWEST = 8
"""Of fewer input channels, oneDNN's strided 1x1 convolutions (torch 2.14, CPU, channels last) write
past the end of their memory."""


class NetworkChoice(Spec):
    """A torchvision classification network with weights of its own, never pre-trained ones.

    A plain name is a choice too, ``model: resnet50``, and starts from the defaults. That the name
    exists is checked where the network is built.
    """

    stem_of_resnets: ClassVar[Stem] = "imagenet"
    """The stem of a ResNet whose choice does not name one."""

    name: str = Field(default="resnet18", description="as in torchvision.models, e.g. resnet50")
    stem: Stem = Field(
        default="imagenet",
        description="the first layers: as published (imagenet) or, ResNets only, one 3x3 "
        "convolution of stride 1 without pooling (cifar)",
    )
    width: int = Field(
        default=PUBLISHED_WIDTH,
        ge=_NARROWEST,
        description="channels of the first stage; other than 64: ResNets only",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        choice = {"name": given} if isinstance(given, str) else given
        if not isinstance(choice, Mapping):
            return choice
        name = choice.get("name", cls.model_fields["name"].default)
        stem = cls.stem_of_resnets if is_resnet(name) else "imagenet"
        return {"stem": stem} | dict(choice)

    @model_validator(mode="after")
    def _fits_the_network(self) -> Self:
        if not is_resnet(self.name) and self.stem == "cifar":
            raise ValueError(
                f"stem=cifar is for ResNets; {self.name} has its own: write model={self.name}"
            )
        if self.width != PUBLISHED_WIDTH and (
            not is_resnet(self.name) or self.name.startswith("resnext")
        ):
            raise ValueError(
                f"width={self.width} is for ResNets; {self.name} has its own: "
                f"write model={self.name}"
            )
        return self


class SmallImageNetwork(NetworkChoice):
    """The network of a task with images of about 32 pixels: ResNets have the CIFAR stem."""

    stem_of_resnets: ClassVar[Stem] = "cifar"

    stem: Stem = Field(
        default="cifar", description="the first layers, see NetworkChoice; other networks: imagenet"
    )


def is_resnet(name: object) -> bool:
    """Whether this is one of torchvision's ResNets (wide ones and ResNeXts too)."""
    return isinstance(name, str) and _RESNET.match(name) is not None


class Cifar10Recipe(Recipe):
    """The paper's ResNet-18 (section 5.3.2): SGD with momentum on random crops and flips.

    The validation images are cut from the 50,000 training images, which leaves fewer to train on
    than the paper had. Metrics: ``loss`` in nats, ``accuracy`` in percent.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="accuracy", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "accuracy"
    counted: ClassVar[str] = "images"

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


class ImageNetRecipe(Recipe):
    """The paper's ResNet-50 settings (section 5.3.1) on an indexed folder of images.

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
    counted: ClassVar[str] = "images"

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
