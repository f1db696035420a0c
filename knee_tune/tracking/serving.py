"""The registered model, as code that travels with it: MLflow runs this file to load the model.

No pickle: the weights are safetensors, everything else is JSON and the task's own asset files.
Input is a list of raw inputs (sentences, mappings of named texts), an array (n, ...) of rows or
images, or a data frame: one column of inputs, one per name, or one per number. Output is a list
with one answer per input, or an array (n, ...) of them (class scores).
"""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from numpy.typing import NDArray
from safetensors.torch import load_model

from knee_tune.tasks.outside import modules_of
from knee_tune.tasks.registry import task_entry

ORDER, WEIGHTS, ASSETS = "order", "weights", "assets"
"""Artifacts: JSON with task, recipe and seed; the weights; a folder of files ``predict`` needs."""


class ServedTask(PythonModel):
    """A trained task that answers raw inputs, on the CPU."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the task and its model from the artifacts, and the code that travels with them."""
        code = Path(__file__).parent / "code"
        with modules_of(code) if code.is_dir() else nullcontext():
            self.load({name: Path(path) for name, path in context.artifacts.items()})

    def load(self, artifacts: dict[str, Path]) -> None:
        """Build the task from ``order``, ``weights`` and, if it needs any, ``assets``."""
        order = json.loads(artifacts[ORDER].read_text())
        assets = artifacts.get(ASSETS, artifacts[ORDER].parent / ASSETS)
        entry = task_entry(order["task"])
        self._task = entry.build(order["recipe"], data_dir=assets, seed=order["seed"])
        with torch.random.fork_rng(devices=[]):  # a fresh model draws numbers; leave the caller's
            self._model = self._task.build_model()
        load_model(self._model, artifacts[WEIGHTS])
        self._model.eval()

    # MLflow takes this type hint for a schema and warns about every other one, or none. What comes
    # is what the signature makes of the input: an array, a data frame or a list.
    def predict(
        self,
        context: PythonModelContext | None,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> list[Any] | NDArray[Any]:
        """One answer per input."""
        with torch.inference_mode():
            return self._task.predict(self._model, inputs_of(model_input))


def inputs_of(model_input: Any) -> Sequence[Any]:
    """The raw inputs in what MLflow hands over."""
    if isinstance(model_input, pd.DataFrame):
        if model_input.shape[1] == 1:
            return list(model_input.iloc[:, 0])
        numbers = all(map(pd.api.types.is_numeric_dtype, model_input.dtypes))
        return list(model_input.to_numpy()) if numbers else model_input.to_dict("records")
    if isinstance(model_input, str):
        return [model_input]
    return list(np.asarray(model_input) if isinstance(model_input, np.ndarray) else model_input)


set_model(ServedTask())
