"""The recipe of the language model: a GPT on the bytes of one prepared text."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import DATA_NAME, Epochs, Metric, Optimizer, PositiveLR, Recipe, Spec

DEFAULT_TEXT = "persuasion"
"""The set that needs no network: it is prepared on first use."""

BYTES = 256
"""Tokens there are: every byte is one."""


class GptSize(Spec):
    """A decoder-only Transformer; the defaults are nanoGPT's for Shakespeare: 10.8 million."""

    layers: int = Field(default=6, gt=0)
    width: int = Field(default=384, gt=0)
    heads: int = Field(default=6, gt=0, description="attention heads; must divide width")
    context: int = Field(default=256, gt=0, description="tokens that the model looks back on")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    vocabulary: int = Field(
        default=BYTES,
        ge=BYTES,
        description="rows of the embedding; more than the 256 that bytes need make a model as "
        "large, and as slow, as one with a larger vocabulary",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return self


class GptRecipe(Recipe):
    """AdamW on random windows of a text, one token a byte.

    ``loss`` is the cross-entropy in nats per token, ``bits_per_byte`` the same in bits. The first
    90 % of the text train, the next 5 % validate, the last 5 % test.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="bits_per_byte", direction="minimize"),
    )
    watched: ClassVar[str] = "loss"
    counted: ClassVar[str] = "bytes"

    epochs: Epochs = 20
    steps_per_epoch: int | None = Field(
        default=None,
        gt=0,
        description="None: as many as draw each training token once on average; with a number, "
        "budgets are iterations: 20 epochs of 250 are 5,000",
    )
    seed_lr: PositiveLR = 1e-3
    warmup_steps: int = Field(default=100, ge=0, description="linear warmup, in steps")
    optimizer: Optimizer = Optimizer(
        name="adamw", betas=(0.9, 0.99), weight_decay=0.1, weight_decay_on="matrices"
    )
    clip_norm: float | None = Field(default=1.0, gt=0, description="gradient norm limit")
    amp: bool = Field(default=True, description="bf16 autocast on a GPU; a CPU stays in float32")
    batch_size: int = Field(default=64, gt=0, description="windows per step, all ranks")
    model: GptSize = GptSize()
    objective: Literal["loss", "bits_per_byte"] = "loss"

    data: str = Field(
        default=DEFAULT_TEXT,
        pattern=DATA_NAME,
        description="name of a prepared text: a folder in the data directory",
    )
    valid_bytes: int | None = Field(
        default=None, gt=1, description="validate on the first so many bytes (all if None)"
    )

    @property
    def measures(self) -> dict[str, str]:
        """See :class:`BaseRecipe`."""
        context = self.model.context
        return {
            "loss": "cross-entropy in nats per byte, which is the token here, so per-token "
            "perplexity is its exponential; over every byte but the first, in windows of "
            f"{context} that do not overlap",
            "bits_per_byte": "the same in bits",
        }
