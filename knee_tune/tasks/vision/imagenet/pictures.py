"""Reading one picture: decoded with Pillow, cropped and resized as torchvision does, in uint8."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as transforms

from knee_tune.errors import first_line
from knee_tune.tasks.vision import pixels
from knee_tune.tasks.vision.imagenet.index import FORMATS

Pixels = NDArray[np.uint8]
"""A picture (height, width, 3), red first."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, by channel, for pixels in [0, 1]."""

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the picture that a training crop covers, and width over height of it."""

_TRIES = 10


class UnreadableError(Exception):
    """A picture cannot be decoded; the message says which and why, in one line."""


def read(path: Path) -> Image.Image:
    """The decoded picture in RGB; UnreadableError if it is not one."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # there is no end to what damaged bytes lead to
        raise UnreadableError(f"{path}: no readable image ({first_line(error)[:200]})") from None


def training_view(image: Image.Image, *, side: int, draw: torch.Generator) -> Pixels:
    """A random crop resized to ``side`` pixels, mirrored half of the time."""
    *numbers, flip = torch.rand(4 * _TRIES + 1, generator=draw, dtype=torch.float64).tolist()
    view = image.crop(random_box(*image.size, numbers)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    crop = np.asarray(view)
    return crop[:, ::-1] if flip < 0.5 else crop


def evaluation_view(image: Image.Image, *, side: int) -> Pixels:
    """The middle, after the shorter side was resized to 8/7 of ``side`` pixels."""
    whole = transforms.resize(image, [round(side * 8 / 7)])
    return np.asarray(transforms.center_crop(whole, [side, side]))


def random_box(width: int, height: int, draws: list[float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop; ``draws`` are 40 numbers in [0, 1).

    As torchvision's RandomResizedCrop: area and aspect ratio (in logarithms) are uniform. If ten
    tries do not fit into the picture, it is the largest crop in the middle of an allowed ratio.
    """
    for each in range(0, 4 * _TRIES, 4):
        share, slope, left, top = draws[each : each + 4]
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * share)
        low, high = map(math.log, RATIO)
        ratio = math.exp(low + (high - low) * slope)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def normalised(views: Tensor) -> Tensor:
    """Views (n, side, side, 3) uint8 as networks take them, (n, 3, side, side) float32."""
    return pixels.normalised(views, mean=MEAN, std=STD)


def as_picture(raw: Any) -> Image.Image:
    """Raw pixels (height, width, 3), 0 to 255, as a picture."""
    return Image.fromarray(np.asarray(raw).astype(np.uint8))
