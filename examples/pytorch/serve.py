"""What ``knee-tune register`` serves of train.py: class scores of 8x8 images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from network import network
from numpy.typing import NDArray
from safetensors.torch import load_model


def load(weights: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return what answers images (n, 1, 8, 8) with scores (n, 10)."""
    model = network(width=8)
    load_model(model, weights)
    model.eval()

    def predict(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model(torch.as_tensor(np.asarray(images, dtype=np.float32))).numpy()

    return predict
