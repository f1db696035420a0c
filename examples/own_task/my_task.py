"""Wine by its chemistry (scikit-learn's data): which of three cultivars is it?

knee-tune run --task examples/own_task/my_task.py:Wine
"""

import numpy as np
import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import knee_tune


class WineRecipe(knee_tune.SimpleRecipe):
    """What `--set recipe.FIELD=VALUE` may change, besides epochs, batch_size, optimizer, ..."""

    epochs: int = 40
    batch_size: int = 16
    seed_lr: float = 3e-3
    width: int = 32


class Wine(knee_tune.SimpleTask[WineRecipe]):
    """Three cultivars of wine from 13 measurements, a small multilayer perceptron."""

    metrics = {"loss": "minimize", "accuracy": "maximize"}
    watched = "loss"
    space = {"seed_lr": {"low": 3e-4, "high": 3e-2, "per_decade": 3}}

    def datasets(self):
        """The table, shuffled once and cut in three; standardised as its first part is."""
        rows, labels = load_wine(return_X_y=True)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        x = torch.tensor(rows, dtype=torch.float32)[order]
        y = torch.tensor(labels)[order]
        x = (x - x[:98].mean(0)) / x[:98].std(0)
        cuts = {"train": slice(0, 98), "valid": slice(98, 138), "test": slice(138, None)}
        return {name: TensorDataset(x[cut], y[cut]) for name, cut in cuts.items()}

    def build_model(self):
        """Scores of the three classes."""
        width = self.recipe.width
        return nn.Sequential(nn.Linear(13, width), nn.ReLU(), nn.Linear(width, 3))

    def loss(self, model, batch):
        """The mean, and what it is the mean of."""
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels), len(labels)

    def evaluate_batch(self, model, batch):
        """Sums, and what makes them means."""
        inputs, labels = batch
        scores = model(inputs)
        loss = F.cross_entropy(scores, labels, reduction="sum")
        right = (scores.argmax(1) == labels).sum()
        return {"loss": (loss, len(labels)), "accuracy": (100 * right, len(labels))}

    def predict(self, model, inputs):
        """Only to register: the cultivar of each wine, 0 to 2."""
        rows = torch.tensor(np.asarray(inputs, dtype=np.float32))
        return model(rows).argmax(1).tolist()
