"""The recipes of the translation tasks: the paper's settings (section 5.3.4)."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import (
    DATA_NAME,
    Epochs,
    Keep,
    Metric,
    Optimizer,
    PositiveLR,
    Recipe,
    Spec,
)

DEMO = "demo.de-en"
"""The set that needs no download: it is prepared on first use."""

WMT14 = "wmt14.en-de"
"""WMT'14 English-German, as ``knee-tune data prepare wmt14`` makes it."""

OWN = "mine"
"""A corpus of one's own, unless it is given another name."""


class TransformerSize(Spec):
    """An encoder-decoder Transformer; the defaults are the paper's Transformer base.

    With vocabularies of 8,848 and 6,632 types (fairseq's IWSLT'14) that is 52.1 million
    parameters. fairseq's ``transformer_iwslt_de_en`` is ``ffn_dim=1024, heads=4``: 39.5 million.
    """

    # Not stored unless it is ours: runs of before there was a choice keep their identity.
    family: Literal["fairseq", "torch"] = Field(
        default="fairseq",
        exclude_if=lambda family: family == "fairseq",
        description="whose implementation: fairseq's, or ours, which needs torch alone",
    )
    encoder_layers: int = Field(default=6, gt=0)
    decoder_layers: int = Field(default=6, gt=0)
    embed_dim: int = Field(default=512, gt=0, multiple_of=2)
    ffn_dim: int = Field(default=2048, gt=0)
    heads: int = Field(default=8, gt=0, description="attention heads; must divide embed_dim")
    dropout: float = Field(default=0.3, ge=0, lt=1)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    activation_dropout: float = Field(default=0.0, ge=0, lt=1)
    share_embeddings: Literal["none", "decoder", "all"] = Field(
        default="decoder",
        description="decoder: target embedding = output layer (fairseq's IWSLT'14 recipe); "
        "all: source too, which needs a joined dictionary",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.embed_dim % self.heads:
            raise ValueError(f"heads={self.heads} must divide embed_dim={self.embed_dim}")
        return self


class Cutoff(Spec):
    """Cutoff (Shen et al., 2020): every pair is trained as it is, and with parts of it cut out.

    The loss is the cross-entropy of both, plus the divergence of the two predictions, per target
    token. ``token`` and ``span`` replace words of both sides by ``<unk>``, ``feature`` zeroes
    dimensions of their embeddings.
    """

    kind: Literal["token", "span", "feature"] = Field(
        default="token", description="what is cut: single words, one run of words, dimensions"
    )
    share: float = Field(
        default=0.05, gt=0, lt=1, description="of the words of a sentence, or of the dimensions"
    )
    weight: float = Field(default=1.0, ge=0, description="of the cross-entropy of what was cut")
    consistency: Literal["reference", "exact"] = Field(
        default="reference",
        description="divergence of the two predictions: as the published code has it (to the "
        "softmax of their mean scores), or Jensen and Shannon's (to their mean)",
    )
    consistency_weight: float = Field(default=5.0, ge=0, description="of that divergence")

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not self.weight and not self.consistency_weight:
            raise ValueError("weight and consistency_weight are both 0: nothing would come of it")
        return self


class TranslationRecipe(Recipe):
    """A Transformer on one prepared language pair, IWSLT'14 unless told otherwise.

    ``loss`` is the label-smoothed cross-entropy per target token in nats, ``ppl`` the exponential
    of the plain one (fairseq's ``2 ** nll_loss``), ``word_ppl`` that of the same per word, ``bleu``
    tokenised BLEU in percent. See :attr:`measures`.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="ppl", direction="minimize"),
        Metric(name="word_ppl", direction="minimize"),
        Metric(name="bleu", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "ppl"
    counted: ClassVar[str] = "pairs"
    preparing: ClassVar[str] = "data prepare iwslt"
    """The command that prepares the data, with what it needs."""

    epochs: Epochs = 50
    seed_lr: PositiveLR = 3e-4
    optimizer: Optimizer = Optimizer(name="radam", betas=(0.9, 0.999), weight_decay=1e-4)
    clip_norm: float | None = Field(default=25.0, gt=0, description="gradient norm limit")
    keep: Keep = "best"
    objective: Literal["ppl", "bleu"] = "ppl"

    data: str = Field(
        default="iwslt14.de-en",
        pattern=DATA_NAME,
        description="name of a prepared set: a folder in the data directory",
    )
    tokens_per_step: int = Field(
        default=4000,
        gt=0,
        description="most tokens (longer side, with padding) of one step, over all ranks",
    )
    evaluation_tokens: int = Field(
        default=8000, gt=0, description="most tokens of one evaluation batch of one rank"
    )
    valid_pairs: int | None = Field(
        default=None,
        gt=0,
        description="validate on this many pairs, spread evenly over the split (all if None)",
    )
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    max_source_positions: int = Field(default=1024, gt=0, description="longest source, in tokens")
    max_target_positions: int = Field(default=1024, gt=0, description="longest target, in tokens")
    model: TransformerSize = TransformerSize()
    # Not stored unless it is chosen, as split_compounds: runs of before keep their identity.
    cutoff: Cutoff | None = Field(
        default=None,
        exclude_if=lambda cutoff: cutoff is None,
        description="augmentation of the training pairs; None: they are trained as they are",
    )

    beam: int = Field(default=5, gt=0, description="beam size of translation")
    len_penalty: float = Field(default=1.0, description="above 1 favours longer translations")
    max_len_a: float = Field(
        default=0.0, ge=0, description="translations end at max_len_a * source length + max_len_b"
    )
    max_len_b: int = Field(default=200, gt=0)
    split_compounds: bool = Field(
        default=False,
        exclude_if=lambda chosen: not chosen,
        description="BLEU counts the parts of words-with-hyphens, as get_ende_bleu.sh does",
    )

    @property
    def measures(self) -> dict[str, str]:
        """See :class:`BaseRecipe`."""
        hyphens = ", parts of words-with-hyphens counted" if self.split_compounds else ""
        return {
            "loss": "cross-entropy in nats per target token (piece of a word), smoothed by "
            f"{self.label_smoothing:g}",
            "ppl": "perplexity per target token; label smoothing not counted",
            "word_ppl": "the same per word, as the target is tokenised; the end of a sentence "
            "counts as one in both",
            "bleu": "corpus BLEU of tokenised text with its case as it was prepared, in percent"
            f"{hyphens}: multi-bleu's convention, not sacreBLEU's 13a; beam {self.beam}, length "
            f"penalty {self.len_penalty:g}",
        }

    @property
    def modules(self) -> tuple[str, ...]:
        """See :class:`Recipe`; fairseq takes seconds to import."""
        ours = self.model.family == "torch"
        return () if ours else ("knee_tune.tasks.translation.fairseq_bridge",)


class OwnTranslationRecipe(TranslationRecipe):
    """The same on a corpus of one's own, which gives its name to studies and models."""

    preparing: ClassVar[str] = f"data prepare translation --from DIR --name {OWN}"

    data: str = Field(
        default=OWN,
        pattern=DATA_NAME,
        description="name of a prepared set: a folder in the data directory",
    )

    @property
    def subject(self) -> str | None:
        """See :class:`BaseRecipe`; the demo corpus is nobody's own."""
        return None if self.data == DEMO else self.data


class Wmt14Recipe(TranslationRecipe):
    """The same on WMT'14 English-German: larger steps, by accumulation, and less dropout.

    With vocabularies of 41,000 types that are 86 million parameters.
    """

    preparing: ClassVar[str] = "data prepare wmt14"

    epochs: Epochs = 70
    data: str = Field(
        default=WMT14,
        pattern=DATA_NAME,
        description="name of a prepared set: a folder in the data directory",
    )
    tokens_per_step: int = Field(
        default=30_000,
        gt=0,
        description="most tokens (longer side, with padding) of one step, over all ranks",
    )
    accumulate: int = Field(
        default=8,
        gt=0,
        description="micro-batches per step and rank, which share the tokens of a step",
    )
    model: TransformerSize = TransformerSize(dropout=0.1)
