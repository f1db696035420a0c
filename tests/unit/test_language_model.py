"""The GPT: what it may look at, how it starts, what it measures, how it continues a text."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from knee_tune.errors import UserError
from knee_tune.tasks.language import task as module
from knee_tune.tasks.language.model import Gpt
from knee_tune.tasks.language.recipe import GptRecipe, GptSize
from knee_tune.tasks.language.task import GptTask
from knee_tune.tasks.language.text import prepare
from knee_tune.workers.group import Group

SIZE = GptSize(layers=2, width=32, heads=2, context=16)
TEXT = "".join(f"{number} times {number} is {number * number}.\n" for number in range(200))


@pytest.fixture
def model() -> Gpt:
    torch.manual_seed(1)
    return Gpt(SIZE).eval()


@pytest.fixture(autouse=True)
def _as_in_an_evaluation() -> Iterator[None]:
    """Without gradients, and on one thread: small models are faster so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "squares.txt").write_text(TEXT)
    prepare(data_root=tmp_path, from_path=tmp_path / "squares.txt")
    return tmp_path


def task(data: Path, **recipe: Any) -> GptTask:
    settings = {"data": "squares", "model": SIZE, "batch_size": 4, **recipe}
    return GptTask(GptRecipe.model_validate(settings), data_dir=data, seed=1)


def test_no_position_sees_what_comes_later(model: Gpt) -> None:
    tokens = torch.randint(256, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(dim=(0, 2)).all()


def test_the_embedding_is_the_output_layer(model: Gpt) -> None:
    assert sum("tokens" in name for name, _ in model.named_parameters()) == 1
    assert sum(each.numel() for each in model.parameters()) == sum(
        (
            *(256 * 32, 16 * 32),
            2 * (3 * 32 * 33 + 32 * 33 + 2 * 64 + 4 * 32 * 33 + 32 * 4 * 32 + 32),
            64,
        )
    )


def test_it_starts_as_gpt_2_does() -> None:
    torch.manual_seed(1)
    model = Gpt(GptSize(layers=8, width=64, heads=2, context=16))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            residual = name.endswith(("attention.output.weight", "contract.weight"))
            std = 0.02 / math.sqrt(16) if residual else 0.02
            assert float(parameter.std()) == pytest.approx(std, rel=0.05), name


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="heads=5 must divide width=32"):
        GptSize(width=32, heads=5)


def test_an_epoch_is_the_text_once_or_as_many_steps_as_are_asked_for(data: Path) -> None:
    train = len(TEXT) * 90 // 100
    assert task(data).steps_per_epoch(Group()) == train // (4 * 16)
    assert task(data, steps_per_epoch=250).steps_per_epoch(Group()) == 250


def test_every_byte_but_the_first_is_predicted_once(data: Path, model: Gpt) -> None:
    """In windows that do not overlap; the last one is shorter."""
    measured = task(data).evaluate(model, Group(), split="valid", final=True)
    train, valid = len(TEXT) * 90 // 100, len(TEXT) * 5 // 100
    text = torch.tensor(list(TEXT.encode()))[train : train + valid]
    assert (valid - 1) % 16
    total = sum(
        float(F.cross_entropy(model(text[None, at : at + 16][:, : valid - 1 - at])[0], after))
        * len(after)
        for at in range(0, valid - 1, 16)
        for after in [text[at + 1 : at + 17]]
    )
    assert measured["loss"] == pytest.approx(total / (valid - 1), rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(measured["loss"] / math.log(2))


def test_a_text_is_continued_and_always_in_the_same_way(
    data: Path, model: Gpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER", 20)
    texts = ["12 times", "", "grün, and longer than the 16 bytes that the model looks back on"]
    answers = task(data).predict(model, texts)
    assert answers == task(data).predict(model, texts)
    for text, answer in zip(texts, answers, strict=True):
        assert answer.startswith(text)
        assert 0 < len(answer) - len(text) <= 20


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            {"model": {**SIZE.model_dump(), "context": 9000}},
            "context=9000: the training text of",
        ),
        ({"batch_size": 1, "accumulate": 2}, "batch_size=1: fewer than ranks times"),
    ],
)
def test_what_cannot_be_trained_is_refused(data: Path, recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        task(data, **recipe).steps_per_epoch(Group())
