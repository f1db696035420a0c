"""Import what the commands import: proves an installation, and writes its bytecode."""

import logging
import sys
import time
import warnings
from importlib import import_module

MODULES = [
    "knee_tune.cli.commands",
    "knee_tune.commands.run",
    "knee_tune.jobs",
    "torch",
    "torch._dynamo",
    "torch.distributed",
    "optuna",
    "optuna_dashboard",
    "mlflow.pytorch",
    "mlflow.pyfunc",
    "sklearn.datasets",
    "plotly.graph_objects",
]
OF_EXTRAS = {
    "translation": [
        "sacrebleu",
        "sacremoses",
        "fairseq.data.data_utils_fast",
        "fairseq.tasks.translation",
    ],
    "vision": ["torchvision"],
    "hf": ["transformers", "accelerate"],
    "language": ["tokenizers", "timm.optim", "transformers.models.bert.modeling_bert"],
    "lightning": ["lightning.pytorch"],
    "ray": ["ray.util.placement_group", "ray.util.scheduling_strategies"],
    "s3": ["s3fs"],
}

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
start = time.monotonic()
for extra in sys.argv[1].split(","):
    MODULES += OF_EXTRAS.get(extra, [])
for module in MODULES:
    import_module(module)
print(f"every library imports ({time.monotonic() - start:.0f} s)")
