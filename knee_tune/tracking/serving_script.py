"""The registered model of a script, as code that travels with it: MLflow runs this file to load it.

The script's own modules lie beside it (``code_paths``); one of them, which ``run.finish`` named,
makes of the weights what answers. Nothing of knee-tune is needed.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

ORDER, WEIGHTS = "order", "weights"
"""Artifacts: JSON with what to call, as ``module:function``, and the weights to call it with."""


class ServedScript(PythonModel):
    """What a script's own function makes of its weights."""

    def load_context(self, context: PythonModelContext) -> None:
        """Call that function, once."""
        serve = json.loads(Path(context.artifacts[ORDER]).read_text())["serve"]
        module, _, function = serve.partition(":")
        load = getattr(import_module(module), function)
        self._answer = load(Path(context.artifacts[WEIGHTS]))

    # MLflow takes this type hint for any input, and warns about every other one, or none.
    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Ask what it returned."""
        return self._answer(model_input)


set_model(ServedScript())
