"""What every registered task promises to the training loop: the suite that everybody has."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from knee_tune.errors import UserError
from knee_tune.tasks.base import FusableTask, Task
from knee_tune.tasks.registry import TASKS, task_entry
from knee_tune.testing import Make, TaskContract, rows_of
from tests.documents import put_documents
from tests.generated_images import put_cifar10
from tests.picture_folder import put_imagenet


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


def _another_question(_: pytest.MonkeyPatch, folder: Path) -> None:
    from knee_tune.tasks.bert.squad_demo import demo_articles
    from knee_tune.tasks.bert.squad_prepare import prepare
    from knee_tune.tasks.bert.squad_text import in_v1_form

    other = folder / "squad-demo.json"
    other.write_bytes(in_v1_form(demo_articles()).replace(b"What was the job?", b"Which trade?"))
    prepare(data_root=folder, from_path=other)


def _another_word(_: pytest.MonkeyPatch, folder: Path) -> None:
    from knee_tune.tasks.language.text import embedded_text, prepare

    other = folder / "persuasion.txt"
    other.write_bytes(embedded_text().replace(b"Finis", b"The end"))
    prepare(data_root=folder, from_path=other)


def _other_documents(_: pytest.MonkeyPatch, folder: Path) -> None:
    put_documents(folder, last="The end")


TRANSLATION: dict[str, Any] = {
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
}


def _pair_ids(batch: Any) -> list[Any]:
    ids: list[Any] = batch.sample["id"].tolist()
    return ids if batch.counts else []


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
        recipe=TRANSLATION, example_ids=_pair_ids, other_data=_another_sentence, together=False
    ),
    "wmt14": Case(
        recipe=TRANSLATION | {"accumulate": 2, "model": TRANSLATION["model"] | {"family": "torch"}},
        example_ids=_pair_ids,
        other_data=_another_sentence,
        together=False,
    ),
    "translation": Case(
        recipe=TRANSLATION | {"model": TRANSLATION["model"] | {"family": "torch"}},
        example_ids=_pair_ids,
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
    "gpt": Case(
        recipe={
            "batch_size": 12,
            "steps_per_epoch": 6,
            "valid_bytes": 400,
            "model": {"layers": 1, "width": 16, "heads": 2, "context": 16, "dropout": 0.1},
        },
        example_ids=rows_of,
        other_data=_another_word,
        together=True,
    ),
    "bert": Case(
        recipe={
            "data": "documents",
            "batch_size": 12,
            "length": 16,
            "next_sentence": True,
            "model": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "positions": 16},
        },
        example_ids=rows_of,
        other_data=_other_documents,
        together=True,
        data=put_documents,
    ),
    "squad": Case(
        recipe={
            "data": "squad-demo",
            "train_questions": 75,
            "valid_questions": 10,
            "batch_size": 12,
            "max_length": 64,
            "max_question_length": 16,
            "stride": 24,
            "model": {"size": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16}},
        },
        example_ids=lambda batch: [
            tuple(tokens[there].tolist())
            for tokens, there in zip(batch.tokens, batch.mask, strict=True)
        ],
        other_data=_another_question,
        together=True,
    ),
}


@pytest.fixture(params=list(TASKS))
def name(request: pytest.FixtureRequest) -> str:
    """Every registered task, where its libraries are installed."""
    found: str = request.param
    if found == "iwslt":
        pytest.importorskip("fairseq", reason="needs the translation extra")
    if task_entry(found).extra == "language":
        pytest.importorskip("transformers", reason="needs the language extra")
    if task_entry(found).extra == "vision":
        pytest.importorskip("torchvision", reason="needs the vision extra")
    return found


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for case in CASES.values():
        case.data(folder)
    return folder


class TestOurs(TaskContract):
    @pytest.fixture
    def make(self, name: str, case: Case, data_folder: Path) -> Make:
        def build(*, folder: Path = data_folder, seed: int = 1, **recipe: Any) -> Task[Any]:
            return task_entry(name).build({**case.recipe, **recipe}, data_dir=folder, seed=seed)

        return build

    @pytest.fixture
    def example_ids(self, case: Case) -> Callable[[Any], list[Any]]:
        return case.example_ids

    @pytest.fixture
    def together(self, case: Case) -> bool:
        return case.together

    def test_the_fingerprint_changes_with_the_data(
        self, make: Make, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fingerprint, examples = make().describe()
        assert examples["test"] > 0
        case.other_data(monkeypatch, tmp_path)
        changed, _ = make(folder=tmp_path).describe()
        assert changed != fingerprint

    def test_assets_lie_in_the_data_folder(self, built: Task[Any], data_folder: Path) -> None:
        for asset, path in built.assets().items():
            assert path.is_file()
            assert path == data_folder / asset


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
