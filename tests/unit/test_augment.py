"""Crops and flips of a batch, pixel by pixel."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from knee_tune.tasks.vision.cifar10 import MEAN, STD, Draws, crop, normalised, pad

CPU = torch.device("cpu")
IMAGES = torch.randint(1, 256, (6, 4, 4, 3), dtype=torch.uint8)


def draws(*, order: list[int], top: list[int], left: list[int], flip: list[bool]) -> Draws:
    return Draws(
        order=torch.tensor(order),
        top=torch.tensor(top),
        left=torch.tensor(left),
        flip=torch.tensor(flip),
    )


def of_epoch(epoch: int, *, seed: int = 1, padding: int = 4, flip: bool = True) -> Draws:
    return Draws.of_epoch(epoch, seed=seed, images=500, padding=padding, flip=flip, device=CPU)


def test_the_middle_crop_is_the_image() -> None:
    middle = draws(order=[3, 0], top=[2, 2], left=[2, 2], flip=[False, True])

    one, other = crop(pad(IMAGES, 2), middle, side=4)

    assert torch.equal(one, IMAGES[3])
    assert torch.equal(other, IMAGES[0].flip(1))  # left and right, not up and down


def test_a_corner_crop_reaches_into_black() -> None:
    corners = draws(order=[5, 5], top=[0, 4], left=[1, 4], flip=[False, False])

    upper, lower = crop(pad(IMAGES, 2), corners, side=4)

    assert not upper[:2].any()
    assert not upper[:, 0].any()
    assert torch.equal(upper[2:, 1:], IMAGES[5, :2, :3])
    assert torch.equal(lower[:2, :2], IMAGES[5, 2:, 2:])
    assert not lower[2:].any()


def test_a_flipped_crop_is_the_crop_flipped() -> None:
    """As torchvision does it: RandomCrop, then RandomHorizontalFlip."""
    places = {"order": [1, 2, 4], "top": [0, 1, 3], "left": [3, 0, 1]}
    plain, flipped = (
        crop(pad(IMAGES, 2), draws(**places, flip=[flip] * 3), side=4) for flip in (False, True)
    )

    assert torch.equal(flipped, plain.flip(2))


def test_a_batch_equals_torchvision_image_by_image() -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    mine = of_epoch(0)[:32]
    images = torch.randint(256, (500, 32, 32, 3), dtype=torch.uint8)

    ours = normalised(crop(pad(images, 4), mine, side=32))

    for image, row in zip(ours, range(32), strict=True):
        raw = transforms.pad(images[mine.order[row]].permute(2, 0, 1), [4])
        cut = transforms.crop(raw, int(mine.top[row]), int(mine.left[row]), 32, 32)
        turned = transforms.horizontal_flip(cut) if mine.flip[row] else cut
        torch.testing.assert_close(
            image, transforms.normalize(turned.float() / 255, list(MEAN), list(STD))
        )


def test_networks_get_channels_last() -> None:
    images = normalised(IMAGES)

    assert images.shape == (6, 3, 4, 4)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_draws_every_image_every_corner_and_both_sides() -> None:
    drawn = of_epoch(0)

    assert drawn.order.sort().values.tolist() == list(range(500))
    assert set(drawn.top.tolist()) == set(drawn.left.tolist()) == set(range(9))
    assert 200 < int(drawn.flip.sum()) < 300
    assert not torch.equal(drawn.top, drawn.left)
    assert not of_epoch(0, flip=False).flip.any()
    assert not of_epoch(0, padding=0).top.any()


@pytest.mark.parametrize(
    "other", [lambda: of_epoch(1), lambda: of_epoch(0, seed=2)], ids=["epoch", "seed"]
)
def test_draws_follow_from_seed_and_epoch(other: Callable[[], Draws]) -> None:
    def values(drawn: Draws) -> list[Tensor]:
        return [getattr(drawn, field.name) for field in fields(drawn)]

    torch.manual_seed(7)  # the global generator decides nothing
    for one, again, differing in zip(
        values(of_epoch(0)), values(of_epoch(0)), values(other()), strict=True
    ):
        assert torch.equal(one, again)
        assert not torch.equal(one, differing)
