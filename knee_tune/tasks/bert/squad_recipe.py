"""The recipe of question answering: an encoder fine-tuned on SQuAD v1.1, or on data of its form."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from knee_tune.config.recipe import DATA_NAME, Epochs, Metric, Optimizer, PositiveLR, Recipe, Spec
from knee_tune.tasks.bert.size import EncoderSize

DEMO = "squad-demo"
"""The set that needs no files: generated questions, prepared on first use."""

FEWEST_CONTEXT_TOKENS = 32
"""That a window has at least beside its question."""


class EncoderChoice(Spec):
    """The encoder that is fine-tuned."""

    path: str | None = Field(
        default=None,
        description="folder with config.json, model.safetensors and tokenizer.json or vocab.txt",
    )
    size: EncoderSize | None = Field(
        default=None, description="without a path: of an encoder that starts at random"
    )

    @field_validator("path")
    @classmethod
    def _wherever_it_is_read(cls, path: str | None) -> str | None:
        return path and str(Path(path).expanduser().absolute())


class SquadRecipe(Recipe):
    """The paper's settings (section 5.3.5), those of transformers' example: Adam for two epochs.

    ``em`` and ``f1`` are percent of questions as the official script for v1.1 counts them, ``loss``
    is in nats per window: the mean of the cross-entropies of an answer's start and end.
    """

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(name="em", direction="maximize", percent=True),
        Metric(name="f1", direction="maximize", percent=True),
        Metric(name="loss", direction="minimize"),
    )
    watched: ClassVar[str] = "f1"
    counted: ClassVar[str] = "questions"

    epochs: Epochs = 2
    evaluations_per_epoch: int = Field(default=2, gt=0)
    seed_lr: PositiveLR = 3e-5
    optimizer: Optimizer = Optimizer(name="adam")
    clip_norm: float | None = Field(default=1.0, gt=0, description="gradient norm limit")
    amp: bool = Field(default=True, description="bf16 autocast on a GPU; a CPU stays in float32")
    batch_size: int = Field(default=12, gt=0, description="windows per step, all ranks")
    model: EncoderChoice = EncoderChoice()
    objective: Literal["f1", "em", "loss"] = "f1"

    data: str = Field(
        default="squad",
        pattern=DATA_NAME,
        description="name of a prepared set: a folder in the data directory",
    )
    train_questions: int | None = Field(
        default=None, gt=0, description="train on the first so many questions (all if None)"
    )
    valid_questions: int | None = Field(
        default=None, gt=0, description="validate on the first so many questions (all if None)"
    )
    max_length: int = Field(default=384, gt=0, description="tokens of a window, question included")
    stride: int = Field(
        default=128, gt=0, description="tokens from one window of a paragraph to the next"
    )
    max_question_length: int = Field(default=64, gt=0, description="tokens; the rest is cut off")
    max_answer_length: int = Field(default=30, gt=0, description="tokens of an answer")
    n_best: int = Field(
        default=20, gt=0, description="starts, and ends, of a window that answers are chosen from"
    )
    evaluation_batch: int = Field(
        default=32, gt=0, description="windows of one evaluation batch of one rank"
    )

    @property
    def measures(self) -> dict[str, str]:
        """See :class:`BaseRecipe`."""
        return {
            "em": "percent of questions whose best answer is one of those that people gave, by the "
            "rule of the official script for v1.1",
            "f1": "words shared with the closest of those answers, by the same rule",
            "loss": "nats per window: the mean of the cross-entropies of start and end",
        }

    @property
    def context_tokens(self) -> int:
        """Tokens of a paragraph that a window has room for beside the longest question."""
        return self.max_length - self.max_question_length - 3

    @model_validator(mode="after")
    def _windows_overlap(self) -> Self:
        if self.context_tokens < FEWEST_CONTEXT_TOKENS:
            raise ValueError(
                f"max_length={self.max_length}: must be {FEWEST_CONTEXT_TOKENS + 3} or more above "
                f"max_question_length={self.max_question_length}"
            )
        if self.stride > self.context_tokens:
            raise ValueError(
                f"stride={self.stride}: windows would leave out parts of a paragraph; at most "
                f"{self.context_tokens} with this max_length and max_question_length"
            )
        return self
