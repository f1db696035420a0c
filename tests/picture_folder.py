"""A small folder of pictures in ImageNet's layout, generated."""

from pathlib import Path

import numpy as np
from PIL import Image

from knee_tune.tasks.vision.imagenet_index import prepare

CLASSES = ("n01", "n02", "n03")


def make_pictures(root: Path, *, train: int = 12, val: int = 3, side: int = 40) -> Path:
    """``train`` and ``val`` JPEG files of each class: a hue of its own, noise, and odd sizes."""
    draw = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        hue = np.eye(3)[label] * 120
        for folder, count in (("train", train), ("val", val)):
            (root / folder / name).mkdir(parents=True)
            for index in range(count):
                height, width = side + draw.integers(0, side, size=2)
                pixels = draw.integers(0, 120, size=(height, width, 3)) + hue
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / folder / name / f"{name}_{index}.JPEG", quality=90)
    return root


def put_imagenet(data_dir: Path, *, side: int = 40) -> None:
    """Index a generated folder of 36 + 9 pictures under the name ``imagenet``."""
    prepare(data_root=data_dir, from_path=make_pictures(data_dir / "pictures", side=side))
