"""The recipe of the digits task, and that of its control."""

from pydantic import Field

from knee_tune.tasks.tabular.recipe import TabularRecipe


class DigitsRecipe(TabularRecipe):
    """scikit-learn's 8x8 digits with label noise and one-pixel shifts.

    Noise and shifts are what makes exploring pay: without them the longest explore always wins.
    """

    batch_size: int = Field(default=16, gt=0, le=800, description="examples per step, all ranks")
    shift: int = Field(default=1, ge=0, le=3, description="largest shift of an image, in pixels")


class CleanDigitsRecipe(DigitsRecipe):
    """The control: every label is right and no image is shifted."""

    label_noise: float = Field(default=0.0, ge=0, lt=1, description="share of random labels")
    shift: int = Field(default=0, ge=0, le=3, description="largest shift of an image, in pixels")
