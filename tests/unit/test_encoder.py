"""Encoders: fresh ones, and those read from a folder as everybody publishes them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the language extra")

import torch
from safetensors.torch import load_file, save_file

from knee_tune.errors import UserError
from knee_tune.tasks.bert.encoder import (
    CONFIG,
    WEIGHTS,
    build_encoder,
    encoded,
    load_encoder,
    save_encoder,
)
from knee_tune.tasks.bert.size import EncoderSize

SIZE = EncoderSize(layers=1, width=16, heads=2, feed_forward=24, positions=20)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_encoder(build_encoder(SIZE, vocabulary=30, pooler=True), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "encoder"))


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **settings}))


def test_what_is_saved_is_loaded_bit_for_bit_with_a_head_of_somebodys_or_without(
    folder: Path,
) -> None:
    weights = load_file(folder / WEIGHTS)
    expected = {name: each for name, each in weights.items() if not name.startswith("pooler.")}
    named = {f"bert.{name}": each for name, each in weights.items()}
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): named[name] for name in named}
    for content in (weights, named, {**old, "cls.predictions.bias": torch.zeros(30)}):
        save_file(content, folder / WEIGHTS)
        loaded = load_encoder(folder, named="DIR").state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_padding_is_not_looked_at(saved: Path) -> None:
    encoder = load_encoder(saved, named="DIR").eval()
    tokens = torch.tensor([[2, 7, 8, 3]])
    filled = torch.tensor([[2, 7, 8, 3, 0, 9]])
    alone = encoded(encoder, tokens, torch.zeros_like(tokens))
    with_padding = encoded(encoder, filled, torch.zeros_like(filled), torch.arange(6)[None] < 4)[
        :, :4
    ]
    torch.testing.assert_close(alone, with_padding)


def test_nothing_but_sizes_is_taken_from_a_configuration(folder: Path) -> None:
    """No code, no kernel of a hub, nothing to fetch."""
    change(folder, auto_map={"AutoModel": "x--y"}, attn_implementation="some/kernel")
    assert load_encoder(folder, named="DIR").config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "roberta"}, r"config\.json is of model type roberta; expected bert"),
        ({"hidden_size": 18}, "is 30 x 16, expected 30 x 18, and 19 more"),
        ({"num_hidden_layers": 2}, "is missing, expected 16 x 16, and 15 more"),
        ({"hidden_size": 17}, "describes no encoder: The hidden size"),
        ({"hidden_size": "x"}, "describes no encoder: .*expected int, got str"),
        ({"hidden_act": "x"}, "describes no encoder"),
    ],
)
def test_another_architecture_is_refused(settings: Any, said: str, folder: Path) -> None:
    change(folder, **settings)
    with pytest.raises(UserError, match=f"^DIR: .*{said}") as error:
        load_encoder(folder, named="DIR")
    assert "\n" not in str(error.value)


def test_missing_pickled_and_damaged_files_are_named(folder: Path) -> None:
    def refused() -> str:
        with pytest.raises(UserError) as error:
            load_encoder(folder, named="DIR")
        return str(error.value)

    (folder / WEIGHTS).write_bytes(b"damaged")
    assert refused().startswith("DIR: model.safetensors is damaged")
    (folder / WEIGHTS).unlink()
    assert refused() == "DIR: no model.safetensors in it"
    (folder / "pytorch_model.bin").touch()
    assert refused().endswith("pickled weights (pytorch_model.bin) are not read, convert them")
    (folder / CONFIG).write_text("{")
    assert refused().startswith("DIR: config.json is no JSON")
    (folder / CONFIG).unlink()
    assert refused() == "DIR: no config.json in it"
    shutil.rmtree(folder)
    assert refused() == "DIR: no such folder; it needs config.json and model.safetensors"
