"""scikit-learn's breast cancer data (Wisconsin, diagnostic): malignant or benign, 30 features."""

from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from knee_tune.tasks.breast_cancer.recipe import BreastCancerRecipe
from knee_tune.tasks.tabular.classifier import TabularTask


class BreastCancerTask(TabularTask[BreastCancerRecipe]):
    """30 features of cell nuclei, standardised; 0 is malignant, 1 benign."""

    classes = 2
    splits: ClassVar[Mapping[str, slice]] = {
        "train": slice(0, 288),
        "valid": slice(288, 459),
        "test": slice(459, None),
    }
    split_seed = 569

    def read(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """All 569 cases."""
        features, labels = load_breast_cancer(return_X_y=True)
        return features, labels
