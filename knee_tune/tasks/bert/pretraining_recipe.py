"""The recipe of BERT's pre-training: masked language modelling with LAMB, in two phases."""

from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import DATA_NAME, Epochs, Metric, Optimizer, Phase, PositiveLR, Recipe
from knee_tune.tasks.bert.size import EncoderSize

DEFAULT_TEXT = "persuasion-wordpiece"
"""The set that needs no network: it is prepared on first use."""

FEWEST_TOKENS = 8
"""Of an input: there must be something to mask."""


class PretrainingPhase(Phase):
    """A phase with inputs of its own length; what is not said of it is the recipe's."""

    length: int | None = Field(default=None, ge=FEWEST_TOKENS, description="tokens of an input")
    batch_size: int | None = Field(default=None, gt=0, description="inputs per step, all ranks")
    accumulate: int | None = Field(
        default=None, gt=0, description="micro-batches per step and rank"
    )


class BatchShape(NamedTuple):
    """What a step of a phase is trained on."""

    length: int
    size: int
    accumulate: int


class BertRecipe(Recipe):
    """The paper's settings (section 5.3.3) but the LR, which it does not give. An epoch is a step.

    ``loss`` is the cross-entropy in nats per masked token, ``accuracy`` the percentage of them that
    is guessed. Next-sentence prediction is trained on, but in no metric of an evaluation.
    """

    own_unit: ClassVar[str] = "steps"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="loss", direction="minimize"),
        Metric(name="accuracy", direction="maximize", percent=True),
    )
    watched: ClassVar[str] = "loss"
    counted: ClassVar[str] = "tokens"

    epochs: Epochs = 31_250
    evaluate_every: int = Field(
        default=250, gt=0, description="steps from one evaluation to the next"
    )
    seed_lr: PositiveLR = 3.5e-3
    optimizer: Optimizer = Optimizer(
        name="lamb", eps=1e-6, weight_decay=0.01, weight_decay_on="matrices"
    )
    clip_norm: float | None = Field(default=1.0, gt=0, description="gradient norm limit")
    amp: bool = Field(default=True, description="bf16 autocast on a GPU; a CPU stays in float32")
    batch_size: int = Field(default=16_384, gt=0, description="inputs per step, all ranks")
    length: int = Field(default=128, ge=FEWEST_TOKENS, description="tokens of an input")
    # Of any recipe; here they may change the inputs too.
    phases: tuple[PretrainingPhase, ...] = Field(
        default=(),
        exclude_if=lambda phases: not phases,
        description="Knee schedules behind each other, each with its length of inputs",
    )
    model: EncoderSize = EncoderSize()
    next_sentence: bool = Field(
        default=False,
        description="an input is of two parts, and whether they follow one another is learned too",
    )
    objective: Literal["loss", "accuracy"] = "loss"

    data: str = Field(
        default=DEFAULT_TEXT,
        pattern=DATA_NAME,
        description="name of a prepared text: a folder in the data directory",
    )
    valid_length: int | None = Field(
        default=None,
        ge=FEWEST_TOKENS,
        description="tokens of an input of evaluations, in every phase (None: the shortest)",
    )
    valid_inputs: int | None = Field(
        default=None, gt=0, description="validate on the first so many inputs (all if None)"
    )
    valid_masks: int = Field(
        default=1, gt=0, description="ways in which an input of evaluations is masked"
    )

    @property
    def measures(self) -> dict[str, str]:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return {
            "loss": "cross-entropy in nats per masked token, in inputs of "
            f"{self.measured_length} tokens of which 15 % are to be guessed",
            "accuracy": "percent of the masked tokens that are guessed",
        }

    def batch_of(self, phase: int) -> BatchShape:
        """What a step of a phase, counted from 0, is trained on; without phases, of any."""
        own = self.phases[phase] if self.phases else None
        return BatchShape(
            length=(own and own.length) or self.length,
            size=(own and own.batch_size) or self.batch_size,
            accumulate=(own and own.accumulate) or self.accumulate,
        )

    @property
    def lengths(self) -> list[int]:
        """Of the inputs of every phase."""
        return [self.batch_of(phase).length for phase in range(max(1, len(self.phases)))]

    @property
    def measured_length(self) -> int:
        """Of the inputs of evaluations."""
        return self.valid_length or min(self.lengths)

    def steps_per_evaluation(self, steps_per_epoch: int) -> int:
        """See :class:`~knee_tune.config.recipe.BaseRecipe`."""
        return self.evaluate_every

    @model_validator(mode="after")
    def _inputs_have_positions(self) -> Self:
        longest = max(*self.lengths, self.measured_length)
        if longest > self.model.positions:
            raise ValueError(
                f"length={longest}: the model has positions for model.positions="
                f"{self.model.positions} tokens"
            )
        return self
