"""Which network an image task trains, as its recipe says it (no torch here)."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import Spec

Stem = Literal["cifar", "imagenet"]

_RESNET = re.compile(r"(wide_)?resnet\d|resnext\d")
_WIDTH = 64

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
        default=_WIDTH,
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
        if self.width != _WIDTH and (not is_resnet(self.name) or self.name.startswith("resnext")):
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
