"""Import what the commands import: proves an installation, and writes its bytecode."""

import logging
import time
import warnings
from importlib import import_module

MODULES = (
    "knee_tune.cli.commands",
    "knee_tune.commands.run",
    "knee_tune.jobs",
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "torchvision",
    "optuna",
    "optuna_dashboard",
    "mlflow.pytorch",
    "mlflow.pyfunc",
    "sklearn.datasets",
    "plotly.graph_objects",
    "sacrebleu",
    "sacremoses",
    "fairseq.data.data_utils_fast",
    "fairseq.tasks.translation",
)

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
start = time.monotonic()
for module in MODULES:
    import_module(module)
print(f"every library imports ({time.monotonic() - start:.0f} s)")
