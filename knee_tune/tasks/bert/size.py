"""The size of a BERT encoder, as recipes have it; told without the import of torch."""

from typing import Self

from pydantic import Field, model_validator

from knee_tune.config.recipe import Spec


class EncoderSize(Spec):
    """A BERT encoder; the defaults are BERT base, 110 million with its vocabulary of 30,522."""

    layers: int = Field(default=12, gt=0)
    width: int = Field(default=768, gt=0)
    heads: int = Field(default=12, gt=0, description="attention heads; must divide width")
    feed_forward: int = Field(default=3072, gt=0, description="width within a layer")
    positions: int = Field(default=512, gt=0, description="tokens of the longest input")
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="of hidden states and attention weights"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")
        return self
