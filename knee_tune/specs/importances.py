"""How much each hyperparameter of a study matters, and by whose account."""

from pydantic import Field

from knee_tune.specs.base import Spec


class Importances(Spec):
    """Shares of importance, which add up to 1. Evaluators disagree, so the one used is named."""

    evaluator: str = Field(description="as in fANOVA")
    measures: str = Field(description="what a share is a share of, in words")
    values: dict[str, float] = Field(description="by hyperparameter, the largest first")
    dashboard: dict[str, float] = Field(
        default_factory=dict,
        description="the same of PED-ANOVA, the evaluator of Optuna Dashboard's own chart",
    )
    trials: int = Field(description="complete trials that it is computed from")
