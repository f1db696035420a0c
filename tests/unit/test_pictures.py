"""Pictures are cropped, resized and normalised as torchvision's transforms do it."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms
from torchvision.transforms import v2

from knee_tune.tasks.vision.imagenet_loader import (
    MEAN,
    STD,
    UnreadableError,
    evaluation_view,
    normalised,
    random_box,
    read,
    training_view,
)

SIZES = [(500, 375), (375, 500), (256, 256), (1000, 60), (60, 1000), (24, 31)]


def picture(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(0)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [224, 32])
def test_evaluation_views_are_torchvisions(size: tuple[int, int], side: int) -> None:
    image = picture(*size)
    usual = v2.Compose([v2.Resize(round(side * 8 / 7)), v2.CenterCrop(side)])

    assert np.array_equal(evaluation_view(image, side=side), np.asarray(usual(image)))


@pytest.mark.parametrize("size", SIZES)
def test_random_crops_lie_in_the_picture(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        left, top, right, bottom = random_box(*size, draw.random(40).tolist())
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_random_crops_are_spread_as_torchvisions() -> None:
    draw = np.random.default_rng(1)
    torch.manual_seed(1)
    image = picture(50, 40)
    usual = v2.RandomResizedCrop(8)
    theirs = np.array([list(usual.make_params([image]).values()) for _ in range(4000)], dtype=float)
    boxes = np.array([random_box(50, 40, draw.random(40).tolist()) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    ours = np.stack([top, left, bottom - top, right - left], axis=1)

    assert ours.mean(0) == pytest.approx(theirs.mean(0), abs=0.8)
    assert ours.std(0) == pytest.approx(theirs.std(0), abs=0.8)


def test_a_picture_no_crop_fits_into_gives_its_middle() -> None:
    assert random_box(1000, 60, [0.999] * 40) == (460, 0, 540, 60)
    assert random_box(60, 1000, [0.999] * 40) == (0, 460, 60, 540)


def test_training_views_are_the_crop_resized_and_half_of_them_mirrored() -> None:
    image = picture(64, 48)
    mirrored = 0
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        view = training_view(image, side=32, draw=draw)
        numbers = torch.rand(41, generator=draw.manual_seed(seed), dtype=torch.float64).tolist()
        left, top, right, bottom = random_box(64, 48, numbers[:40])
        usual = np.asarray(
            transforms.resized_crop(image, top, left, bottom - top, right - left, [32, 32])
        )
        assert np.array_equal(view, usual) or np.array_equal(view, usual[:, ::-1])
        mirrored += np.array_equal(view, usual[:, ::-1])
    assert 10 <= mirrored <= 30


def test_pixels_are_normalised_on_the_whole_batch() -> None:
    view = np.asarray(picture(20, 20))
    usual = transforms.normalize(transforms.to_tensor(Image.fromarray(view)), [*MEAN], [*STD])
    batch = normalised(torch.from_numpy(view[None].copy()))

    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(batch[0], usual, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_every_kind_of_picture_is_read_in_three_colours(mode: str, tmp_path: Path) -> None:
    file = tmp_path / ("odd.tif" if mode == "CMYK" else "odd.png")
    picture(20, 20).convert(mode).save(file)

    assert read(file).mode == "RGB"


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_a_damaged_picture_is_named(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "damaged.jpg"
    picture(40, 40).save(file)
    file.write_bytes(file.read_bytes()[:kept])

    with pytest.raises(UnreadableError, match=r"damaged\.jpg: no readable image") as caught:
        read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "ppm"])
def test_whatever_damage_leads_to_is_one_error(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"damaged.{suffix}"
    picture(24, 16).save(file)
    content, draw = file.read_bytes(), np.random.default_rng(0)
    for _ in range(int(os.environ.get("KNEE_TUNE_FUZZ", "60"))):
        changed = bytearray(content)
        for place in draw.integers(0, min(len(content), 400), size=3):
            changed[place] = draw.integers(256)
        file.write_bytes(changed)
        with contextlib.suppress(UnreadableError):
            assert read(file).mode == "RGB"


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.ppm"
    file.write_bytes(b"P6\n20000 20000\n255\n")
    with pytest.raises(UnreadableError, match=r"bomb\.ppm: .*decompression bomb"):
        read(file)


def test_a_picture_that_is_a_program_is_none(tmp_path: Path) -> None:
    """Pillow would hand it to Ghostscript."""
    file = tmp_path / "program.jpg"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match=r"program\.jpg: no readable image"):
        read(file)
