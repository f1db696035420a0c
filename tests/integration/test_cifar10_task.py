"""CIFAR-10's task on a small generated set: its splits, its images, and the command before it."""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("torchvision", reason="needs the vision extra")

from knee_tune.commands.home import Home
from knee_tune.commands.look import prepare_data
from knee_tune.errors import UserError
from knee_tune.tasks.base import Examples
from knee_tune.tasks.vision import cifar10
from knee_tune.tasks.vision.cifar10 import Cifar10Task, normalised
from knee_tune.tasks.vision.recipe import Cifar10Recipe
from knee_tune.workers.group import Group
from tests.command_line import knee_tune
from tests.generated_images import generated_images, put_cifar10

IMAGES = generated_images()
PAIR = [Group(rank=rank, world_size=2) for rank in range(2)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    put_cifar10(folder)
    return folder


def task(data: Path, *, seed: int = 1, **recipe: Any) -> Cifar10Task:
    settings = {"validation": 40, "batch_size": 20, "model": {"width": 8}} | recipe
    return Cifar10Task(Cifar10Recipe.model_validate(settings), data_dir=data, seed=seed)


def bag(batches: Iterable[Examples]) -> list[tuple[bytes, int]]:
    """The examples of all batches, sorted."""
    rows = [row for images, labels in batches for row in zip(images, labels, strict=True)]
    return sorted((image.numpy().tobytes(), int(label)) for image, label in rows)


def pixels(images: Tensor) -> Tensor:
    """What a network gets, as bytes again, (n, side, side, 3)."""
    black, white = normalised(torch.tensor([[[[0, 0, 0]]], [[[255] * 3]]], dtype=torch.uint8))
    scaled: Tensor = (images - black) / (white - black) * 255
    return scaled.round().permute(0, 2, 3, 1).byte()


# Splits


def test_the_defaults_are_the_papers(data: Path) -> None:
    recipe = Cifar10Recipe()
    model = Cifar10Task(recipe, data_dir=data, seed=1).build_model()

    assert sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    assert (recipe.epochs, recipe.batch_size, recipe.seed_lr) == (200, 128, 0.1)
    assert (recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (0.9, 5e-4)
    assert (recipe.crop_padding, recipe.flip, recipe.validation) == (4, True, 5000)


def test_validation_is_cut_from_the_training_images_once_and_for_all(data: Path) -> None:
    ours = task(data)
    _, sizes = ours.describe()
    assert sizes == {"train": 120, "valid": 40, "test": 40}

    valid = bag(ours.eval_batches("valid", Group()))
    train = bag(ours.train_examples(Group(), limit=None))
    everything = bag([(normalised(torch.from_numpy(IMAGES.train)), _labels(IMAGES.train_labels))])
    assert sorted(valid + train) == everything
    assert bag(task(data, seed=2).eval_batches("valid", Group())) == valid
    assert bag(ours.eval_batches("test", Group())) == bag(
        [(normalised(torch.from_numpy(IMAGES.test)), _labels(IMAGES.test_labels))]
    )


def _labels(labels: Any) -> Tensor:
    return torch.from_numpy(labels).long()


def test_a_subset_is_the_first_of_the_others(data: Path) -> None:
    whole, subset = task(data), task(data, train_examples=60)

    assert subset.steps_per_epoch(Group()) == 3
    assert bag(subset.train_examples(Group(), limit=None)) == bag(
        whole.train_examples(Group(), limit=60)
    )
    assert bag(subset.eval_batches("valid", Group())) == bag(whole.eval_batches("valid", Group()))


@pytest.mark.parametrize("validation", [150, 500])
def test_too_few_images_to_train_on(data: Path, validation: int) -> None:
    with pytest.raises(UserError, match=rf"^recipe\.validation={validation}: of 160 images"):
        task(data, validation=validation).steps_per_epoch(Group())


def test_a_micro_batch_of_one_image_is_refused(data: Path) -> None:
    """BatchNorm could not tell it from its mean."""
    assert task(data, batch_size=8, accumulate=2).steps_per_epoch(PAIR[0]) == 15
    with pytest.raises(UserError, match=r"^recipe\.batch_size=7: 2 ranks of 2 micro-batches"):
        task(data, batch_size=7, accumulate=2).steps_per_epoch(PAIR[0])


# Images and labels


def test_ranks_share_what_is_evaluated(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "TOGETHER", 7)
    ours = task(data)

    for split in ("valid", "test"):
        shares = [bag(ours.eval_batches(split, group)) for group in PAIR]
        assert sorted(shares[0] + shares[1]) == bag(ours.eval_batches(split, Group()))
    shares = [bag(ours.train_examples(group, limit=33)) for group in PAIR]
    assert sorted(shares[0] + shares[1]) == bag(ours.train_examples(Group(), limit=33))
    assert [len(share) for share in shares] == [17, 16]


def test_a_rank_without_images_still_has_every_metric(data: Path) -> None:
    ours = task(data)
    model = ours.build_model().eval()

    class Rank(Group):
        def sum(self, values: Any) -> list[float]:
            return [value + 1.0 for value in values]

    def nothing(*_: Any) -> Iterable[Examples]:
        return iter(())

    ours.eval_batches = nothing  # type: ignore[method-assign,assignment]
    metrics = ours.evaluate(model, Rank(), split="valid", final=False)
    assert metrics == {"loss": 1.0, "accuracy": 1.0}


def test_training_images_are_crops_of_images_that_stay_whole(data: Path) -> None:
    """Without padding and flips, an epoch is the training images; with them, it is not."""
    plain = task(data, crop_padding=0, flip=False)
    epoch = [batch for step in islice(plain.train_batches(0, Group()), 6) for batch in step]
    whole = bag(plain.train_examples(Group(), limit=None))

    assert bag(epoch) == whole
    augmented = task(data)
    crops = [batch for step in islice(augmented.train_batches(0, Group()), 6) for batch in step]
    assert bag(crops) != whole
    assert bag(augmented.train_examples(Group(), limit=None)) == whole


def test_smaller_images_are_averages(data: Path) -> None:
    small, _ = next(iter(task(data, side=8).eval_batches("test", Group())))
    blocks = IMAGES.test.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4))

    assert np.array_equal(pixels(small).numpy(), blocks.round().astype(np.uint8))


def test_label_noise_is_the_seeds_and_leaves_evaluation_alone(data: Path) -> None:
    def labels(**changes: Any) -> Tensor:
        batches = task(data, **changes).train_examples(Group(), limit=None)
        return torch.cat([found for _, found in batches])

    true, noisy = labels(), labels(label_noise=0.5)
    assert 0.25 < float((true != noisy).float().mean()) < 0.65
    assert torch.equal(noisy, labels(label_noise=0.5))
    assert not torch.equal(noisy, labels(label_noise=0.5, seed=2))
    assert bag(task(data, label_noise=0.5).eval_batches("valid", Group())) == bag(
        task(data).eval_batches("valid", Group())
    )


def test_raw_images_get_the_scores_of_an_evaluation(data: Path) -> None:
    ours = task(data, side=16)
    model = ours.build_model().eval()
    with torch.no_grad():
        scores = ours.predict(model, list(IMAGES.test))
        evaluated = torch.cat([model(images) for images, _ in ours.eval_batches("test", Group())])

    assert scores.shape == (40, 10)
    np.testing.assert_allclose(scores, evaluated.numpy(), rtol=1e-4, atol=1e-5)


# The command


def test_data_that_are_missing_are_said_with_the_ways_out(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^recipe\.data=cifar10: .*data prepare cifar10.*`from_path` FILE\.npz\|DIR",
    ) as error:
        task(tmp_path).describe()
    assert "\n" not in str(error.value)


def test_options_of_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^data prepare cifar10: `bpe_codes` is no option of this task"
    ):
        prepare_data("cifar10", Home(tmp_path), {"from_path": None, "bpe_codes": 300})


def test_images_are_prepared_by_command(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "small.npz",
        x_train=IMAGES.train,
        y_train=IMAGES.train_labels,
        x_test=IMAGES.test,
        y_test=IMAGES.test_labels,
    )

    done = knee_tune(
        *("data", "prepare", "cifar10", "--from", tmp_path / "small.npz", "--json"),
        *("--home", tmp_path / "home"),
    )

    assert json.loads(done.stdout)["images"] == {"train": 160, "test": 40}
    assert bag(task(tmp_path / "home" / "data").eval_batches("test", Group()))
