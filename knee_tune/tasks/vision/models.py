"""Networks for images, from torchvision's parts and without pre-trained weights."""

from difflib import get_close_matches
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models
from torchvision.models.resnet import ResNet

from knee_tune.errors import UserError, first_line
from knee_tune.tasks.vision.recipe import PUBLISHED_WIDTH, NetworkChoice


class StagedResNet(nn.Module):
    """A ResNet with torchvision's blocks that has another stem or width than the published one.

    With the CIFAR stem, a ResNet-18 for 10 classes is the paper's (11,173,962 parameters). Names
    of parameters and initialisation are torchvision's (convolutions: Kaiming normal, fan out), not
    the plain torch defaults that common CIFAR scripts leave in place.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(self, published: ResNet, choice: NetworkChoice, *, classes: int) -> None:
        super().__init__()
        small = choice.stem == "cifar"
        self.conv1 = nn.Conv2d(
            3,
            choice.width,
            kernel_size=3 if small else 7,
            stride=1 if small else 2,
            padding=1 if small else 3,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(choice.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = (
            nn.Identity() if small else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        channels = choice.width
        for stage in range(4):
            blocks = getattr(published, f"layer{stage + 1}")
            made, channels = _stage(
                published,
                type(blocks[0]),
                depth=len(blocks),
                inputs=channels,
                planes=choice.width * 2**stage,
                stride=1 if stage == 0 else 2,
            )
            setattr(self, f"layer{stage + 1}", made)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (n, classes) of images (n, 3, height, width)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(self.avgpool(x).flatten(1))
        return scores


def build_network(
    choice: NetworkChoice, *, classes: int, image_side: int | None = None
) -> nn.Module:
    """Build the network, initialised from torch's global generator: (n, 3, h, w) -> (n, classes).

    ``image_side``, in pixels, is what networks of one image size (ViT, MaxViT) are built for, and
    a network that cannot take such images is refused. UserError for that and for an unknown name.
    """
    names = list_models(module=torchvision.models)
    if choice.name not in names:
        near = get_close_matches(choice.name, names, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "resnet50, for example, is one"
        raise UserError(
            f"recipe.model.name: torchvision has no classification network {choice.name}; {hint}"
        )
    if choice.stem == "cifar" or choice.width != PUBLISHED_WIDTH:
        with torch.device("meta"):
            published = get_model(choice.name, weights=None)
        return StagedResNet(published, choice, classes=classes)
    settings = _settings(choice.name, image_side) | {"num_classes": classes}
    if image_side is not None:
        _check_side(choice.name, settings, image_side)
    network: nn.Module = get_model(choice.name, weights=None, **settings)
    return network


def _stage(
    published: ResNet, block: Any, *, depth: int, inputs: int, planes: int, stride: int
) -> tuple[nn.Sequential, int]:
    """``depth`` blocks and their output channels; the first block changes size and channels."""
    outputs = planes * block.expansion
    shape = {"groups": published.groups, "base_width": published.base_width}
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(outputs),
        )
    first = block(inputs, planes, stride, shortcut, **shape)
    return nn.Sequential(
        first, *(block(outputs, planes, **shape) for _ in range(1, depth))
    ), outputs


def _settings(name: str, image_side: int | None) -> dict[str, Any]:
    """Settings by which some networks give scores alone, for images of this size."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if image_side is not None and name.startswith("vit_"):
        return {"image_size": image_side}
    if image_side is not None and name.startswith("maxvit_"):
        return {"input_size": (image_side, image_side)}
    return {}


def _check_side(name: str, settings: dict[str, Any], image_side: int) -> None:
    """Check that the network takes images of this side, else UserError; nothing is allocated.

    Some (RegNet) cannot be built without numbers: they have to show it in training.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            get_model(name, weights=None, **settings).eval()(
                torch.empty(1, 3, image_side, image_side)
            )
    except NotImplementedError:
        return
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(
            f"recipe.model.name: {name} cannot take images of {image_side} x {image_side} pixels "
            f"({first_line(error)}); choose a larger image_side or another network"
        ) from None
