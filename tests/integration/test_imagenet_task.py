"""ImageNet's task on a small folder of generated pictures: its index, its batches, its runs."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("torchvision", reason="needs the vision extra")

from knee_tune.errors import UserError
from knee_tune.jobs import run_job
from knee_tune.plans.plan import ENTRY, Placement, TrainPlan, TrunkPlan
from knee_tune.schedules import Knee
from knee_tune.tasks.vision.imagenet import ImageNetTask
from knee_tune.tasks.vision.imagenet_index import PreparedIndex, prepare
from knee_tune.tasks.vision.recipe import ImageNetRecipe
from knee_tune.training.checkpoint import WEIGHTS
from knee_tune.workers.forkserver import ForkserverRunner
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import QUIET, Callbacks, Channel, Decision, Failure, Outcome, Report
from tests.integration.runs import done, same
from tests.picture_folder import CLASSES, make_pictures

SMALL: dict[str, Any] = {
    "model": {"name": "resnet18", "width": 8, "stem": "cifar"},
    "image_side": 16,
    "batch_size": 8,
    "evaluation_batch": 8,
    "validation": 2,
    "workers": 0,
}
TRAIN, VAL = 12, 3
"""Pictures of every class."""

STEPS = (TRAIN - 2) * len(CLASSES) // 8
"""Of an epoch."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def data(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    prepare(data_root=root, from_path=pictures)
    return root


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    """A folder of pictures that a test may spoil."""
    return Path(shutil.copytree(pictures, tmp_path / "own"))


def task(data: Path, *, seed: int = 1, **recipe: Any) -> ImageNetTask:
    return ImageNetTask(
        ImageNetRecipe.model_validate({**SMALL, **recipe}), data_dir=data, seed=seed
    )


def batches(task: ImageNetTask, start: int, end: int) -> list[Any]:
    return list(islice(task.train_batches(start, Group()), end - start))


# The index


def test_the_images_stay_where_they_are(own: Path, tmp_path: Path) -> None:
    before = sorted(own.rglob("*"))
    made = prepare(data_root=tmp_path / "data", from_path=own)

    assert made.contents() == f"36 train, 9 val images of 3 classes in {own}"
    assert sorted(path.name for path in made.folder.iterdir()) == ["index.npz", "manifest.json"]
    assert sorted(own.rglob("*")) == before


def test_the_same_images_are_indexed_once(own: Path, tmp_path: Path) -> None:
    def again(**options: Any) -> PreparedIndex:
        return prepare(data_root=tmp_path / "data", from_path=own, **options)

    first = again()
    assert again().reused

    (own / "train/n01/n01_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"from other files in it: choose another `name`, or .*`f"):
        again()
    replaced = again(force=True)
    assert not replaced.reused
    assert replaced.images == {"train": 35, "val": 9}
    assert replaced.fingerprint != first.fingerprint


def test_an_index_is_the_same_wherever_the_images_lie(own: Path, data: Path) -> None:
    moved = prepare(data_root=own.parent / "data", from_path=own)

    assert moved.fingerprint == task(data).describe()[0]


def empty_class(root: Path) -> None:
    shutil.rmtree(root / "val/n02")
    (root / "val/n02").mkdir()


def flat_val(root: Path) -> None:
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    for name in CLASSES:
        (root / "val" / name).rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), "no folder train/ in it; the layout is"),
        (lambda root: shutil.rmtree(root / "val"), "no folder val/ in it"),
        (lambda root: (root / "val/n09").mkdir(), "val/n09 is no class of train/"),
        (lambda root: (root / "train/n00").mkdir(), "no images in train/n00"),
        (empty_class, "no images in val/n02"),
        (flat_val, "no images in val/n01"),
        (
            lambda root: (root / "train/n02/n02_3.JPEG").write_bytes(b"no picture"),
            r"train/n02/n02_3\.JPEG: no readable image \(cannot identify",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(
    spoil: Callable[[Path], Any], message: str, own: Path, tmp_path: Path
) -> None:
    spoil(own)

    with pytest.raises(UserError, match=message) as caught:
        prepare(data_root=tmp_path / "data", from_path=own)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_a_folder_must_be_named_and_is_never_written_over(own: Path) -> None:
    with pytest.raises(UserError, match=r"registered people only.*`from_path` DIR"):
        prepare(data_root=own.parent)
    for folder in (own, own / "train"):
        with pytest.raises(UserError, match="choose another `name`"):
            prepare(data_root=own.parent, name="own", from_path=folder, force=True)


def test_images_that_have_changed_since_are_noticed(own: Path, tmp_path: Path) -> None:
    prepare(data_root=tmp_path / "data", from_path=own)
    Image.new("RGB", (9, 9)).save(own / "val/n03/n03_2.JPEG")

    with pytest.raises(UserError, match=r"n03_2\.JPEG: missing or changed since it was indexed"):
        task(tmp_path / "data").describe()


def test_without_an_index_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"recipe.data=imagenet: .*data prepare imagenet --from DIR"
    ):
        task(tmp_path).describe()


# Splits


def test_val_is_the_test_split_and_validation_is_cut_from_train(data: Path) -> None:
    assert task(data).describe()[1] == {"train": 30, "valid": 6, "test": 9}

    def seen(split: Any, **recipe: Any) -> set[bytes]:
        found = task(data, **recipe).eval_batches(split, Group())
        return {image.numpy().tobytes() for images, _ in found for image in images}

    def trained(**recipe: Any) -> set[bytes]:
        found = task(data, **recipe).train_examples(Group(), limit=None)
        return {image.numpy().tobytes() for images, _ in found for image in images}

    assert len(seen("valid") | trained()) == TRAIN * len(CLASSES)
    assert not (seen("valid") | trained()) & seen("test")
    assert seen("valid", seed=2) == seen("valid")
    assert len(seen("valid", validation=4)) == 4 * len(CLASSES)
    labels = torch.cat([labels for _, labels in task(data).eval_batches("valid", Group())])
    assert labels.bincount().tolist() == [2, 2, 2]


def test_the_first_training_examples_are_of_every_class(data: Path) -> None:
    ranks = [Group(rank=rank, world_size=2) for rank in range(2)]
    shares = [list(task(data).train_examples(group, limit=15)) for group in ranks]

    assert [sum(len(labels) for _, labels in share) for share in shares] == [8, 7]
    labels = torch.cat([labels for share in shares for _, labels in share])
    assert labels.bincount().min() > 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"validation": 12}, "recipe.validation=12: class n01 has 12 images in train/"),
        ({"batch_size": 31}, "recipe.batch_size=31: must be between 2 .* and 30"),
        ({"accumulate": 9}, "recipe.batch_size=8: must be between 18"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(
    recipe: dict[str, Any], message: str, data: Path
) -> None:
    with pytest.raises(UserError, match=message):
        task(data, **recipe).steps_per_epoch(Group())


# Batches


def test_the_number_of_workers_changes_no_image(data: Path) -> None:
    alone = batches(task(data), 0, STEPS + 2)
    torch.manual_seed(7)
    before = torch.get_rng_state()

    assert same(batches(task(data, workers=2), 0, STEPS + 2), alone)
    assert same(batches(task(data, workers=1), STEPS + 1, STEPS + 2), alone[STEPS + 1 :])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_picture_is_cropped_otherwise_in_every_epoch_and_for_every_seed(data: Path) -> None:
    def crops(seed: int, epoch: int) -> set[bytes]:
        found = batches(task(data, seed=seed), epoch * STEPS, (epoch + 1) * STEPS)
        return {image.numpy().tobytes() for step in found for images, _ in step for image in images}

    assert len(crops(1, 0) | crops(1, 1) | crops(2, 0)) == 3 * 8 * STEPS


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_decoded_is_named(own: Path, workers: int) -> None:
    data = own.parent / "data"
    prepare(data_root=data, from_path=own)
    for path in (own / "train").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:-400])

    with pytest.raises(UserError, match=r"_\d+\.JPEG: no readable image .*; fetch it again") as no:
        batches(task(data, workers=workers), 0, 1)
    assert "\n" not in str(no.value)


# Scores


def test_class_scores_of_raw_images_of_any_size(data: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    model = task(data).build_model().eval()
    paths = sorted((pictures / "val").rglob("*.JPEG"))
    raw = [np.asarray(Image.open(path)) for path in paths]
    with torch.no_grad():
        scores = task(data, evaluation_batch=4).predict(model, raw)
        metrics = task(data).evaluate(model, Group(), split="test", final=True)

    assert scores.shape == (9, 3)
    assert scores.dtype == np.float32
    right = (scores.argmax(1) == np.repeat([0, 1, 2], VAL)).mean()
    assert metrics["accuracy"] == pytest.approx(100 * right)
    assert metrics["top5"] == 100  # there are three classes


def test_top5_counts_a_class_among_the_five_best(data: Path) -> None:
    scores = torch.arange(10.0).repeat(4, 1)
    found = task(data).score(scores, torch.tensor([9, 5, 4, 0]))

    assert (float(found["accuracy"]), float(found["top5"])) == (100, 200)


def test_what_is_served_needs_no_images(data: Path, tmp_path: Path) -> None:
    trained = task(data)
    for name, path in trained.assets().items():
        (tmp_path / name).parent.mkdir()
        shutil.copy(path, tmp_path / name)
    served = task(tmp_path)

    model = served.build_model().eval()
    with torch.no_grad():
        assert len(served.predict(model, trained.examples())) == 2


# Runs


class Line(Channel):
    """A line to a driver in the same process that never stops a run."""

    def report(self, report: Report) -> Decision:
        return Decision(stop=False)

    def progress(self, step: int) -> None: ...

    def line(self, text: str) -> None: ...


def plan(data: Path, folder: Path, *, total: int = 4, **more: Any) -> TrainPlan:
    folder.mkdir(exist_ok=True)
    return TrainPlan(
        **{
            "task": "imagenet",
            "recipe": ImageNetRecipe.model_validate({**SMALL, "workers": 1}).model_dump(),
            "seed": 1,
            "data_dir": data,
            "log_dir": folder / "logs",
            "checkpoint_dir": folder / "checkpoints",
            "schedule": Knee(seed_lr=0.1, total_steps=total, warmup_steps=0, explore_steps=2),
            "steps_per_evaluation": 2,
            **more,
        }
    )


def weights(plan: TrainPlan) -> dict[str, torch.Tensor]:
    return load_file(plan.checkpoint_dir / WEIGHTS)


def test_a_branch_in_the_middle_of_an_epoch_is_the_uninterrupted_run(
    data: Path, tmp_path: Path
) -> None:
    trunk = TrunkPlan(key="trunk", folder=tmp_path / "trunk", checkpoint_steps=(2,))
    assert trunk.checkpoint_steps[0] % STEPS
    whole = plan(data, tmp_path / "whole")
    run_job(whole, Group(), Line())
    run_job(plan(data, tmp_path / "first", total=3, trunk=trunk), Group(), Line())
    branch = plan(data, tmp_path / "branch", trunk=trunk)

    assert done(run_job(branch, Group(), Line())).first_step == 2
    assert same(weights(branch), weights(whole))


@pytest.fixture(scope="module")
def forkserver() -> Iterator[ForkserverRunner]:
    runner = ForkserverRunner(ENTRY, preload=["knee_tune.tasks.vision.imagenet"])
    yield runner
    runner.close()


def test_two_ranks_with_workers_of_their_own_resume_to_the_same_bits(
    data: Path, tmp_path: Path, forkserver: ForkserverRunner
) -> None:
    def run(plan: TrainPlan, *, stop_at: int = 0) -> Outcome:
        stop = Callbacks(on_report=lambda report: Decision(stop=report.step == stop_at))
        return forkserver.run(plan, stop)

    pair: dict[str, Any] = {"placement": Placement(world_size=2)}
    whole, resumed = (plan(data, tmp_path / name, **pair) for name in ("whole", "resumed"))
    complete = done(run(whole))
    assert complete.state == "complete"
    assert done(run(resumed, stop_at=2)).state == "stopped"
    again = done(run(resumed))

    assert again.first_step == 2
    assert again.result["metrics"] == complete.result["metrics"]
    assert same(weights(resumed), weights(whole))


def test_an_unreadable_picture_ends_the_group_with_its_name(
    own: Path, tmp_path: Path, forkserver: ForkserverRunner
) -> None:
    prepare(data_root=tmp_path / "data", from_path=own)
    for path in (own / "train").rglob("*.JPEG"):
        path.write_bytes(path.read_bytes()[:-400])
    outcome = forkserver.run(
        plan(tmp_path / "data", tmp_path, placement=Placement(world_size=2)), QUIET
    )

    assert isinstance(outcome, Failure)
    assert outcome.kind == "user_error"
    assert "no readable image" in outcome.message
