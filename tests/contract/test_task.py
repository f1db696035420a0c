"""What every registered task promises to the training loop."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.plans.plan import Placement
from knee_tune.tasks.base import FusableTask, Task
from knee_tune.tasks.registry import TASKS, task_entry
from knee_tune.training.learner import evaluate
from knee_tune.workers.group import Group
from tests.generated_images import put_cifar10
from tests.picture_folder import put_imagenet

ALONE = Group()
PAIR = [Group(rank=rank, world_size=2) for rank in range(2)]


@dataclass(frozen=True)
class Case:
    """A task small enough for a test, and what a test cannot ask in general."""

    recipe: Mapping[str, Any]
    example_ids: Callable[[Any], list[Any]]
    """What tells the examples of one micro-batch apart."""
    other_data: Callable[[pytest.MonkeyPatch, Path], None]
    """From here on, the task's data (those in the folder) are slightly different."""
    together: bool
    """Whether the shares of all ranks at a step are the batch of a single rank at that step."""
    data: Callable[[Path], None] = lambda folder: None
    """Puts what the task cannot make itself into the data folder."""


def _another_pixel(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    _another_value(monkeypatch, "knee_tune.tasks.tabular.task.load_digits")


def _another_feature(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    _another_value(monkeypatch, "knee_tune.tasks.tabular.task.load_breast_cancer")


def _another_value(monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    from sklearn import datasets

    rows, labels = getattr(datasets, loader.rpartition(".")[2])(return_X_y=True)
    rows[100, 20] += 1
    monkeypatch.setattr(loader, lambda return_X_y: (rows, labels))  # noqa: N803


def _rows(batch: Any) -> list[Any]:
    return [(row.numpy().tobytes(), int(label)) for row, label in zip(*batch, strict=True)]


def _another_sentence(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    from knee_tune.tasks.translation import demo

    text = demo.demo_text()
    text["valid"][1][7] += " !"
    monkeypatch.setattr(demo, "demo_text", lambda: text)


def _other_images(_: pytest.MonkeyPatch, folder: Path) -> None:
    put_cifar10(folder, seed=1)


def _other_pictures(_: pytest.MonkeyPatch, folder: Path) -> None:
    put_imagenet(folder, side=41)


CASES = {
    "digits": Case(
        recipe={"batch_size": 50, "model": {"dropout": 0.1}},
        example_ids=_rows,
        other_data=_another_pixel,
        together=True,
    ),
    "digits-clean": Case(
        recipe={"batch_size": 50}, example_ids=_rows, other_data=_another_pixel, together=True
    ),
    "breast-cancer": Case(
        recipe={"batch_size": 24}, example_ids=_rows, other_data=_another_feature, together=True
    ),
    "iwslt": Case(
        recipe={
            "data": "demo.de-en",
            "tokens_per_step": 6000,
            "valid_pairs": 40,
            "max_len_b": 10,
            "beam": 2,
            "model": {
                "encoder_layers": 1,
                "decoder_layers": 1,
                "embed_dim": 16,
                "ffn_dim": 32,
                "heads": 2,
            },
        },
        example_ids=lambda batch: batch.sample["id"].tolist() if batch.counts else [],
        other_data=_another_sentence,
        together=False,
    ),
    "cifar10": Case(
        recipe={"batch_size": 24, "validation": 40, "side": 16, "model": {"width": 8}},
        example_ids=_rows,
        other_data=_other_images,
        together=True,
        data=put_cifar10,
    ),
    "imagenet": Case(
        recipe={
            "batch_size": 12,
            "validation": 2,
            "image_side": 32,
            "workers": 0,
            "model": {"name": "resnet18", "width": 8, "stem": "cifar"},
        },
        example_ids=_rows,
        other_data=_other_pictures,
        together=True,
        data=put_imagenet,
    ),
}

Make = Callable[..., Task[Any]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in a rank on CPU: small models are faster so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=list(TASKS))
def name(request: pytest.FixtureRequest) -> str:
    """Every registered task, where its libraries are installed."""
    found: str = request.param
    if task_entry(found).extra == "translation":
        pytest.importorskip("fairseq", reason="needs the translation extra")
    if task_entry(found).extra == "vision":
        pytest.importorskip("torchvision", reason="needs the vision extra")
    return found


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for case in CASES.values():
        case.data(folder)
    return folder


@pytest.fixture
def make(name: str, case: Case, data_dir: Path) -> Make:
    """A new task; keywords change its recipe."""

    def build(*, folder: Path = data_dir, seed: int = 1, **recipe: Any) -> Task[Any]:
        return task_entry(name).build({**case.recipe, **recipe}, data_dir=folder, seed=seed)

    return build


@pytest.fixture
def task(make: Make) -> Task[Any]:
    return make()


def tensors(value: Any) -> list[Tensor]:
    """Every tensor and number in a batch, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return tensors([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, Mapping):
        return tensors([value[key] for key in sorted(value)])
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return [torch.tensor(np.nan if value is None else value)]


def same(left: Any, right: Any) -> bool:
    """Whether two batches, or lists of them, are the same bit for bit."""
    ours, theirs = tensors(left), tensors(right)
    return len(ours) == len(theirs) and all(
        torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
        for one, other in zip(ours, theirs, strict=True)
    )


def steps(task: Task[Any], start: int, end: int, group: Group = ALONE) -> list[Sequence[Any]]:
    """The micro-batches of the steps after ``start`` up to ``end``."""
    return list(islice(task.train_batches(start, group), end - start))


def model_of(task: Task[Any]) -> nn.Module:
    torch.manual_seed(0)
    return task.build_model()


# Construction


def test_construction_needs_no_data(make: Make, tmp_path: Path) -> None:
    make(folder=tmp_path / "nowhere")

    assert not any(tmp_path.iterdir())


def test_the_model_follows_from_the_generator(task: Task[Any]) -> None:
    one, again = model_of(task), model_of(task)
    torch.manual_seed(1)
    other = task.build_model()

    assert same(list(one.parameters()), list(again.parameters()))
    assert not same(list(one.parameters()), list(other.parameters()))


def test_fingerprint_stays_and_changes_with_the_data(
    make: Make, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint, examples = make().describe()
    assert make(seed=2).describe() == (fingerprint, examples)
    assert {"train", "valid", "test"} <= examples.keys()
    assert min(examples.values()) > 0

    case.other_data(monkeypatch, tmp_path)
    changed, _ = make(folder=tmp_path).describe()
    assert changed != fingerprint


# Training batches


@pytest.mark.parametrize("group", [ALONE, *PAIR], ids=["alone", "rank 0 of 2", "rank 1 of 2"])
def test_batches_can_start_at_any_step(make: Make, group: Group) -> None:
    epoch = make().steps_per_epoch(group)
    torch.manual_seed(0)
    whole = steps(make(), 0, epoch + 4, group)

    for start in (2, epoch - 1, epoch, epoch + 1):
        torch.manual_seed(start)  # the global generator decides nothing
        assert same(steps(make(), start, epoch + 4, group), whole[start:]), start


def test_order_differs_between_epochs_and_seeds(make: Make) -> None:
    epoch = make().steps_per_epoch(ALONE)
    two_epochs = steps(make(), 0, 2 * epoch)

    assert not same(two_epochs[:epoch], two_epochs[epoch:])
    assert not same(two_epochs[:epoch], steps(make(seed=2), 0, epoch))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ranks_share_the_epoch(make: Make, case: Case, accumulate: int) -> None:
    task = make(accumulate=accumulate)
    epoch = task.steps_per_epoch(ALONE)
    shares = [steps(task, 0, task.steps_per_epoch(group), group) for group in PAIR]
    assert [len(step) for step in shares[0]] == [len(step) for step in shares[1]]
    assert max(map(len, shares[0])) == accumulate

    def ids(step: Sequence[Any]) -> Counter[Any]:
        return Counter(example for batch in step for example in case.example_ids(batch))

    alone = [ids(step) for step in steps(task, 0, epoch)]
    together = [ids(one) + ids(other) for one, other in zip(*shares, strict=True)]
    assert sum(together, Counter()) == sum(alone, Counter())
    if case.together:
        assert together == alone


# Loss and metrics


@pytest.fixture
def model(task: Task[Any]) -> Iterator[nn.Module]:
    """A model as evaluations get it."""
    with torch.no_grad():
        yield model_of(task).eval()


def test_loss_is_a_sum_with_its_count(make: Make, model: nn.Module) -> None:
    """So an epoch adds up to the same numbers however it is cut into micro-batches."""

    def epoch(accumulate: int, group: Group) -> tuple[float, float]:
        task = make(accumulate=accumulate)
        batches = steps(task, 0, task.steps_per_epoch(group), group)
        losses = [task.loss(model, batch) for step in batches for batch in step]
        assert all(loss.shape == () for loss, _ in losses)
        return sum(float(loss) for loss, _ in losses), sum(count for _, count in losses)

    loss, count = epoch(1, ALONE)
    shares = [epoch(2, group) for group in PAIR]
    assert sum(counted for _, counted in shares) == count > 0
    assert sum(lost for lost, _ in shares) == pytest.approx(loss, rel=1e-4)


def test_metrics_are_those_of_the_recipe(task: Task[Any], model: nn.Module) -> None:
    named = {metric.name for metric in task.recipe.metrics}
    quick = task.evaluate(model, ALONE, split="valid", final=False)
    assert task.recipe.watched in quick
    assert quick.keys() <= named
    assert task.recipe.objective in named
    assert task.evaluate(model, ALONE, split="valid", final=True).keys() == named


def test_evaluation_disturbs_nothing(task: Task[Any]) -> None:
    model = model_of(task)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()

    def measure() -> dict[str, float]:
        return evaluate(task, model, ALONE, placement=Placement(), split="valid", final=True)

    assert measure() == measure()
    assert torch.equal(torch.get_rng_state(), generator)
    assert same(model.state_dict(), state)


# Serving


def test_one_answer_per_example(task: Task[Any], model: nn.Module) -> None:
    examples = task.examples()

    assert len(examples) >= 2
    assert len(task.predict(model, examples)) == len(examples)
    assert len(task.predict(model, examples[:1])) == 1


def test_assets_lie_in_the_data_folder(task: Task[Any], data_dir: Path) -> None:
    for asset, path in task.assets().items():
        assert path.is_file()
        assert path == data_dir / asset


# Registry


def test_every_task_names_its_parts(name: str) -> None:
    entry = task_entry(name)

    assert entry.recipe_type().metrics
    module, _, class_name = entry.task.partition(":")
    task_type = getattr(importlib.import_module(module), class_name)
    assert issubclass(task_type, Task)
    assert issubclass(task_type, FusableTask) == entry.fuses


def test_a_missing_library_is_named_with_the_way_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy_task.py").write_text("import no_such_library.models\n")
    monkeypatch.syspath_prepend(tmp_path)
    needy = replace(TASKS["iwslt"], task="needy_task:Task")
    monkeypatch.setitem(TASKS, "needy", needy)

    with pytest.raises(
        UserError, match=r"^task needy: no_such_library is not installed; "
    ) as error:
        needy.build({}, data_dir=tmp_path, seed=1)
    assert "pip install 'knee-tune[translation]'" in str(error.value)
