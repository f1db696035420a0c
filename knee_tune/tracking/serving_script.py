"""The registered model of a script, as code that travels with it: MLflow runs this file to load it.

The script's own modules lie beside it (``code_paths``); one of them, which ``run.finish`` named,
makes of the weights what answers. Nothing of knee-tune is needed.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
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
        load = getattr(own_module(module, Path(__file__).parent / "code"), function)
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


def own_module(name: str, code: Path) -> ModuleType:
    """Import a module of the folder ``code``, and from there whatever it imports that is there.

    Another model in this process, or whoever loads it, may have modules of the same names: they
    stay what they are.
    """
    mine = {path.relative_to(code).parts[0].removesuffix(".py") for path in code.rglob("*.py")}
    others = {
        each: sys.modules.pop(each) for each in [*sys.modules] if each.partition(".")[0] in mine
    }
    sys.path.insert(0, str(code))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(code))
        sys.modules.update(others)


set_model(ServedScript())
