"""Question answering by an encoder in a folder: what names a run, and what a served model needs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the language extra")

import torch

from knee_tune.errors import UserError
from knee_tune.tasks.bert.encoder import build_encoder, save_encoder
from knee_tune.tasks.bert.size import EncoderSize
from knee_tune.tasks.bert.squad import SquadTask
from knee_tune.tasks.bert.squad_prepare import prepare
from knee_tune.tasks.bert.squad_recipe import SquadRecipe
from knee_tune.tasks.bert.wordpiece import write_vocabulary

SIZE = EncoderSize(layers=1, width=16, heads=2, feed_forward=16, positions=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(data_root=folder)
    return folder


@pytest.fixture
def encoder(tmp_path: Path, data: Path) -> Path:
    """An encoder's folder, as people have it."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    vocabulary = (data / "squad-demo" / "vocab.txt").read_text().split()
    write_vocabulary(vocabulary, folder / "vocab.txt")
    torch.manual_seed(0)
    save_encoder(build_encoder(SIZE, vocabulary=len(vocabulary)), folder)
    return folder


def task(data: Path, path: Path | None, **recipe: Any) -> SquadTask:
    settings = {"max_length": 64, "max_question_length": 16, "stride": 24, "data": "squad-demo"}
    chosen = {"path": None if path is None else str(path)}
    return SquadTask(
        SquadRecipe.model_validate({**settings, "model": chosen, **recipe}), data_dir=data, seed=1
    )


def test_what_is_in_the_encoders_folder_belongs_to_a_runs_identity(
    data: Path, encoder: Path
) -> None:
    before, examples = task(data, encoder).describe()
    assert examples == {"train": 480, "valid": 60, "test": 60}
    (encoder / "README.md").write_text("not read")
    assert task(data, encoder).describe() == (before, examples)
    torch.manual_seed(1)
    save_encoder(build_encoder(SIZE, vocabulary=600), encoder)
    assert task(data, encoder).describe()[0] != before


def test_the_model_starts_from_the_encoder(data: Path, encoder: Path) -> None:
    torch.manual_seed(5)
    one = task(data, encoder).build_model().state_dict()
    torch.manual_seed(6)
    other = task(data, encoder).build_model().state_dict()
    differ = [name for name in one if not torch.equal(one[name], other[name])]
    assert differ == ["ends.weight"]


def test_a_served_model_needs_its_assets_alone(data: Path, encoder: Path, tmp_path: Path) -> None:
    trained = task(data, encoder)
    torch.manual_seed(5)
    model = trained.build_model().eval()
    asked = trained.examples()
    with torch.inference_mode():
        answers = trained.predict(model, asked)
    assert all(answer in each["context"] for answer, each in zip(answers, asked, strict=True))
    for name, path in trained.assets().items():
        assert path.suffix != ".safetensors"
        target = tmp_path / "assets" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    shutil.rmtree(encoder)

    served = task(tmp_path / "assets", encoder)
    fresh = served.build_model().eval()
    fresh.load_state_dict(model.state_dict())
    with torch.inference_mode():
        assert served.predict(fresh, asked) == answers


def test_an_encoder_that_does_not_fit_is_refused(data: Path, encoder: Path) -> None:
    with pytest.raises(UserError, match=r"^recipe\.max_length=80: this encoder reads 64 tokens"):
        task(data, encoder, max_length=80).build_model()
    save_encoder(build_encoder(SIZE, vocabulary=100), encoder)
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, its embeddings 100"):
        task(data, encoder).build_model()
    with pytest.raises(UserError, match=r"^recipe\.model\.path=.*/nowhere: no such folder"):
        task(data, encoder.parent / "nowhere").build_model()
    with pytest.raises(UserError, match=r"^recipe\.model\.path=null: give the folder"):
        task(data, None).build_model()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [({"stride": 50}, "leave out parts of a paragraph; at most 45"), ({"max_length": 50}, "or mo")],
)
def test_windows_leave_nothing_out(recipe: dict[str, int], said: str, data: Path) -> None:
    with pytest.raises(ValueError, match=said):
        task(data, None, **recipe)
