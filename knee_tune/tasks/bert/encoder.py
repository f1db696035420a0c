"""BERT encoders: made from sizes, or read from a folder as everybody publishes them.

A folder has ``config.json`` and ``model.safetensors``. Nothing is ever looked for elsewhere: what
the configuration names besides sizes (code, a kernel, a hub) is passed over, and pickled weights
are refused. Importing this module takes seconds, since transformers does.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertModel

from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.tasks.bert.size import EncoderSize

CONFIG, WEIGHTS = "config.json", "model.safetensors"

PREFIX = "bert."
"""What the encoder's weights begin with where they were saved with a head."""

_SAVED_BEFORE = {"gamma": "weight", "beta": "bias"}
"""What LayerNorm's weights were called in TensorFlow, and in the first files converted from it."""


def build_encoder(size: EncoderSize, *, vocabulary: int, pooler: bool = False) -> BertModel:
    """A fresh encoder, drawn from torch's global generator, with so many tokens; 0 is padding.

    ``pooler``: with the layer that next-sentence prediction reads, of the first token.
    """
    return _encoder(
        BertConfig(
            vocab_size=vocabulary,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.feed_forward,
            max_position_embeddings=size.positions,
            hidden_dropout_prob=size.dropout,
            attention_probs_dropout_prob=size.dropout,
        ),
        pooler=pooler,
    )


def empty_encoder(folder: Path, *, named: str) -> BertModel:
    """The encoder that ``config.json`` in ``folder`` describes, with weights drawn at random.

    ``named``: what an error calls the folder, such as ``recipe.model.path=DIR``. UserError if the
    folder or the file is missing, or it is another architecture.
    """
    config = _read_config(folder, named)
    try:
        return _encoder(BertConfig(**config), pooler=False)
    except (ValueError, TypeError, LookupError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{named}: {CONFIG} describes no encoder: {reason}") from None


def load_encoder(folder: Path, *, named: str) -> BertModel:
    """The encoder in ``folder``, with its weights: without pooler, and without any head.

    UserError, as for :func:`empty_encoder`, and if the weights are missing, pickled, damaged or of
    another configuration.
    """
    encoder = empty_encoder(folder, named=named)
    weights = _read_weights(folder, named)
    expected = encoder.state_dict()
    wrong = [
        f"{name} is {_shape(weights.get(name))}, expected {_shape(value)}"
        for name, value in expected.items()
        if _shape(weights.get(name)) != _shape(value)
    ]
    if wrong:
        raise UserError(
            f"{named}: {WEIGHTS} is not what {CONFIG} describes: {wrong[0]}"
            + (f", and {len(wrong) - 1} more" if wrong[1:] else "")
        )
    encoder.load_state_dict({name: weights[name] for name in expected})
    return encoder


def save_encoder(encoder: BertModel, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, which others read too, into ``folder``."""
    config = {**encoder.config.to_dict(), "architectures": [type(encoder).__name__]}
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    weights = {name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def encoded(
    encoder: nn.Module, tokens: Tensor, segments: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The last hidden states (batch, time, width) of ``tokens`` (batch, time) int64.

    ``segments`` (batch, time) int64: 0 for the first text, 1 for the second. ``mask`` (batch, time)
    bool: where there are tokens, not padding; None: everywhere.
    """
    # Of four dimensions it is taken as it is: transformers looks into one of two, which waits for
    # the device.
    attended = None if mask is None else mask[:, None, None, :]
    hidden: Tensor = encoder(
        input_ids=tokens, token_type_ids=segments, attention_mask=attended
    ).last_hidden_state
    return hidden


def _encoder(config: BertConfig, *, pooler: bool) -> BertModel:
    config._attn_implementation = "sdpa"
    make: Callable[..., BertModel] = BertModel
    return make(config, add_pooling_layer=pooler)


def _read_config(folder: Path, named: str) -> dict[str, Any]:
    """What ``config.json`` says of sizes."""
    if not folder.is_dir():
        raise UserError(f"{named}: no such folder; it needs {CONFIG} and {WEIGHTS}")
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{named}: no {CONFIG} in it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{named}: {CONFIG} is no JSON ({first_line(error)})") from None
    kind = content.get("model_type") if isinstance(content, Mapping) else None
    if kind != "bert":
        raise UserError(f"{named}: {CONFIG} is of model type {kind}; expected bert")
    return {name: value for name, value in content.items() if name in _SIZES}


_SIZES = {
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
}
"""All of a configuration that an encoder is made of."""


def _read_weights(folder: Path, named: str) -> dict[str, Tensor]:
    """The encoder's weights by their names in :class:`BertModel`."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = [each.name for each in sorted(folder.glob("*.bin"))]
        instead = f"; pickled weights ({pickled[0]}) are not read, convert them" if pickled else ""
        raise UserError(f"{named}: no {WEIGHTS} in it{instead}")
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        if disk_trouble(error):
            raise
        raise UserError(f"{named}: {WEIGHTS} is damaged ({first_line(error)})") from None
    return {_renamed(name): value for name, value in found.items()}


def _renamed(name: str) -> str:
    *above, last = name.removeprefix(PREFIX).split(".")
    return ".".join([*above, _SAVED_BEFORE.get(last, last)])


def _shape(value: Any) -> str:
    return "missing" if value is None else " x ".join(map(str, value.shape))
