"""BERT's pre-training: where it computes logits, what a phase is trained on, what it hands over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from knee_tune.errors import UserError
from knee_tune.testing import same, steps
from knee_tune.workers.group import Group
from tests.documents import put_documents

pytest.importorskip("transformers", reason="needs the language extra")

from knee_tune.tasks.bert.encoder import encoded, load_encoder
from knee_tune.tasks.bert.pretraining import BertTask
from knee_tune.tasks.bert.pretraining_recipe import BertRecipe
from knee_tune.tasks.bert.wordpiece import read_tokenizer

SIZE = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "positions": 24, "dropout": 0.0}
PHASES = [{"share": 0.75, "length": 12}, {"share": 0.25, "length": 24, "batch_size": 4}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    put_documents(folder)
    return folder


@pytest.fixture(autouse=True)
def _as_in_an_evaluation() -> Iterator[None]:
    with torch.no_grad():
        yield


def task(data: Path, **recipe: Any) -> BertTask:
    settings = {"data": "documents", "model": SIZE, "batch_size": 6, "length": 16, **recipe}
    return BertTask(BertRecipe.model_validate(settings), data_dir=data, seed=1)


def test_logits_are_those_of_the_guessed_places_alone(data: Path) -> None:
    ours = task(data, next_sentence=True)
    model: Any = ours.build_model().eval()
    ((batch,),) = steps(ours, 0, 1)
    logits, follows = model(batch.tokens, batch.segments, batch.places)
    hidden = encoded(model.encoder, batch.tokens, batch.segments)
    table = model.encoder.embeddings.word_embeddings.weight
    everywhere = F.linear(model.norm(F.gelu(model.transform(hidden))), table, model.bias)
    for row, places in enumerate(batch.places):
        torch.testing.assert_close(logits[row], everywhere[row, places])
    pairs = F.cross_entropy(follows, batch.follows)
    words = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    loss, count = ours.loss(model, batch)
    torch.testing.assert_close(loss / count, words + pairs)


def test_each_phase_has_its_inputs_and_any_step_can_be_made_again(data: Path) -> None:
    ours = task(data, phases=PHASES)
    ours.phase_ends = (9, 12)
    whole = steps(ours, 0, 12)
    assert [step[0].tokens.shape for step in whole] == [(6, 12)] * 9 + [(4, 24)] * 3
    for start in (4, 8, 9, 11):
        assert same(steps(ours, start, 12), whole[start:])
    assert ours.recipe.measured_length == 12
    assert ours.with_seed(2).phase_ends == ours.phase_ends


def test_masks_of_evaluations_do_not_depend_on_the_random_seed(data: Path) -> None:
    one, other = task(data), task(data).with_seed(2)
    model = one.build_model().eval()
    assert one.evaluate(model, Group(), split="valid", final=True) == other.evaluate(
        model, Group(), split="valid", final=True
    )
    assert not same(steps(one, 0, 1), steps(other, 0, 1))


def test_masked_words_are_filled_in(data: Path) -> None:
    ours = task(data)
    model = ours.build_model().eval()
    two, none = ours.predict(model, ["They [MASK] to [MASK].", "They went."])
    assert [len(each.split(", ")) for each in two.split("; ")] == [5, 5]
    assert none == ""


def test_an_encoder_is_handed_over_as_others_read_it(data: Path, tmp_path: Path) -> None:
    ours = task(data, next_sentence=True)
    model: Any = ours.build_model().eval()
    ours.export(model, tmp_path)
    encoder = load_encoder(tmp_path, named="it")
    assert same(
        encoder.state_dict(),
        {name: value for name, value in model.encoder.state_dict().items() if "pooler" not in name},
    )
    assert read_tokenizer(tmp_path, named="it").encode("bath").tokens == ["bath"]


def test_what_cannot_be_trained_is_refused(data: Path) -> None:
    with pytest.raises(ValidationError, match=r"the model has positions for model.positions=24"):
        task(data, length=25)
    with pytest.raises(UserError, match="batch_size=9999: the training text of documents has only"):
        task(data, batch_size=9999).steps_per_epoch(Group())
    with pytest.raises(UserError, match="batch_size=1: fewer than ranks times"):
        task(data, phases=[{**PHASES[0], "batch_size": 1}, PHASES[1]]).steps_per_epoch(
            Group(world_size=2)
        )
    long = {**SIZE, "positions": 512}
    with pytest.raises(UserError, match="valid_length=500: the valid text of documents has only"):
        task(data, model=long, valid_length=500).describe()
