"""The only module that imports fairseq: our recipe on one side, fairseq's objects on the other.

Configurations are fairseq's dataclasses with every value written out: no argparse, no Hydra, and
nothing of them ends up in a checkpoint.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from knee_tune.tasks.translation.family import Sample
from knee_tune.tasks.translation.prepared import Manifest
from knee_tune.tasks.translation.recipe import TranslationRecipe


@contextmanager
def _logging_untouched() -> Iterator[None]:
    """Importing fairseq turns the root logger to DEBUG and gives it a handler: undo that."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.addHandler(silence := logging.NullHandler())  # a basicConfig() then adds no handler
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        silence.close()


with _logging_untouched(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
    from fairseq.models.transformer import TransformerModelBase
    from fairseq.models.transformer.transformer_config import (
        DecoderConfig,
        EncDecBaseConfig,
        QuantNoiseConfig,
        TransformerConfig,
    )
    from fairseq.sequence_generator import SequenceGenerator
    from fairseq.tasks.translation import TranslationConfig, TranslationTask

# What fairseq's decoder passes as masks is right, only of two types.
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")


class Transformer(TransformerModelBase):  # type: ignore[misc]
    """fairseq's Transformer, whose state is loaded as any module's.

    fairseq's own loading adds entries for old checkpoints: the tied output layer then comes twice.
    """

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        *,
        positions: Tensor | None = None,
        kept: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """Return fairseq's output; scores (n, types) at n ``positions`` of the target, if given.

        They count through the flattened batch, and no other position costs a product with the
        vocabulary. ``kept`` multiplies the embeddings of source and target: two tensors
        (sentences, 1, embed_dim).
        """
        if positions is None:
            return super().forward(src_tokens, src_lengths, prev_output_tokens)
        source, target = kept or (None, None)
        with _multiplied(self.encoder.embed_tokens, source):
            encoded = self.encoder(src_tokens, src_lengths=src_lengths)
        with _multiplied(self.decoder.embed_tokens, target):
            features, _ = self.decoder(prev_output_tokens, encoder_out=encoded, features_only=True)
        return self.decoder.output_layer(features.flatten(0, 1)[positions])

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load as ``nn.Module`` does."""
        return nn.Module.load_state_dict(self, state_dict, strict, assign)


@contextmanager
def _multiplied(embedding: nn.Module, by: Tensor | None) -> Iterator[None]:
    """Multiply what ``embedding`` gives meanwhile; both languages may share it."""
    if by is None:
        yield
        return
    handle = embedding.register_forward_hook(lambda _, __, output: output * by)
    try:
        yield
    finally:
        handle.remove()


class FairseqTransformer:
    """A :class:`~knee_tune.tasks.translation.family.Family`: fairseq's model, loss, beam search."""

    def __init__(self, recipe: TranslationRecipe, folder: Path, manifest: Manifest) -> None:
        self._recipe = recipe
        self._task = load_task(folder, manifest.source, manifest.target, recipe)
        self._criterion = build_criterion(self._task, recipe)

    def build_model(self) -> nn.Module:
        """See :class:`Family`."""
        return build_transformer(self._task, self._recipe)

    def losses(self, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
        """See :class:`Family`.

        The forward pass goes through ``model``, which may be DistributedDataParallel, compiled or
        not; what the criterion asks of the model besides is fairseq's, so the model inside has to
        answer.
        """
        eager = getattr(model, "_orig_mod", model)  # inside what torch.compile made
        fairseq_model = eager.module if isinstance(eager, DistributedDataParallel) else eager
        output = model(**sample["net_input"])
        loss, nll = self._criterion.compute_loss(fairseq_model, output, sample)
        return loss, nll

    def translate(self, model: nn.Module, sample: Sample) -> list[Tensor]:
        """See :class:`Family`."""
        recipe = self._recipe
        generate = SequenceGenerator(
            [model],
            self._task.target_dictionary,
            beam_size=recipe.beam,
            len_penalty=recipe.len_penalty,
            max_len_a=recipe.max_len_a,
            max_len_b=recipe.max_len_b,
        )
        return [best["tokens"].cpu() for best, *_ in generate(sample)]


def load_task(folder: Path, source: str, target: str, recipe: TranslationRecipe) -> Any:
    """fairseq's translation task over a prepared set: its dictionaries; no sentences yet."""
    config = TranslationConfig(
        data=str(folder),
        source_lang=source,
        target_lang=target,
        max_source_positions=recipe.max_source_positions,
        max_target_positions=recipe.max_target_positions,
        train_subset="train",
        dataset_impl="mmap",
        required_seq_len_multiple=1,
    )
    return TranslationTask.setup_task(config)


def build_transformer(task: Any, recipe: TranslationRecipe) -> nn.Module:
    """A fresh Transformer for the task's dictionaries."""
    size = recipe.model
    shape = {"embed_dim": size.embed_dim, "ffn_embed_dim": size.ffn_dim}
    shape["attention_heads"] = size.heads
    config = TransformerConfig(
        encoder=EncDecBaseConfig(**shape, layers=size.encoder_layers),
        decoder=DecoderConfig(
            **shape,
            layers=size.decoder_layers,
            input_dim=size.embed_dim,
            output_dim=size.embed_dim,
        ),
        quant_noise=QuantNoiseConfig(),
        dropout=size.dropout,
        attention_dropout=size.attention_dropout,
        activation_dropout=size.activation_dropout,
        share_decoder_input_output_embed=size.share_embeddings != "none",
        share_all_embeddings=size.share_embeddings == "all",
        max_source_positions=recipe.max_source_positions,
        max_target_positions=recipe.max_target_positions,
    )
    model: nn.Module = Transformer.build_model(config, task)
    # Its buffers are constants (position tables, versions): no need to send them at every step.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        model, [name for name, _ in model.named_buffers()]
    )
    return model


def build_criterion(task: Any, recipe: TranslationRecipe) -> Any:
    """fairseq's ``label_smoothed_cross_entropy``, summed over tokens."""
    return LabelSmoothedCrossEntropyCriterion(task, False, recipe.label_smoothing)
