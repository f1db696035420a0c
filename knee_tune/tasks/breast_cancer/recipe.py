"""The recipe of the breast cancer task: that of digits, unchanged."""

from pydantic import Field

from knee_tune.tasks.tabular.recipe import TabularRecipe


class BreastCancerRecipe(TabularRecipe):
    """The network, optimizer, batch, budget and label noise of digits. Nothing was tuned."""

    batch_size: int = Field(default=16, gt=0, le=288, description="examples per step, all ranks")
