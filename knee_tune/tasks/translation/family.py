"""What a translation task asks of a model: fairseq's Transformer and ours answer alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from knee_tune.errors import UserError
from knee_tune.tasks.translation.prepared import Manifest
from knee_tune.tasks.translation.recipe import TranslationRecipe

Sample = Mapping[str, Any]
"""A batch, see :func:`knee_tune.tasks.translation.batches.collate`."""


class Family(Protocol):
    """One implementation of the Transformer, over the vocabularies of one prepared set."""

    def build_model(self) -> nn.Module:
        """A fresh model.

        It is called with the ``net_input`` of a batch. Called with ``positions`` (n,) too, which
        count through the flattened target, it gives the scores there, (n, types); ``kept``
        multiplies the embeddings of source and target, two tensors (sentences, 1, embed_dim).
        """

    def losses(self, model: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
        """Sums over the target tokens: label-smoothed cross-entropy, negative log-likelihood."""

    def translate(self, model: nn.Module, sample: Sample) -> list[Tensor]:
        """The best translation of every sentence by beam search: ids (tokens,), on the CPU."""


def family_of(recipe: TranslationRecipe, folder: Path, manifest: Manifest) -> Family:
    """The family that the recipe names; UserError if it needs fairseq, and there is none."""
    if recipe.model.family == "torch":
        from knee_tune.tasks.translation.transformer import OurTransformer

        return OurTransformer(recipe, manifest)
    try:
        from knee_tune.tasks.translation.fairseq_bridge import FairseqTransformer
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library == "knee_tune":
            raise  # a mistake of ours
        raise UserError(
            f"{library} is not installed: pip install 'knee-tune[translation]' (README, "
            "Install), or train the Transformer that needs no fairseq, recipe.model.family=torch"
        ) from None
    return FairseqTransformer(recipe, folder, manifest)
