"""A network that reads 8x8 digits, trained by Lightning: a plain script that knee-tune can tune."""

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from knee_tune.lightning import KneeCallback

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=8)
arguments = parser.parse_args()


class Reader(L.LightningModule):
    """A small convolutional network with BatchNorm and dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(16 * width, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the ten digits."""
        scores: Tensor = self.head(self.body(images))
        return scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, whose images get some noise."""
        images, labels = batch
        return F.cross_entropy(self(images + 0.1 * torch.randn_like(images)), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Loss and accuracy of the digits that are held out, over all ranks."""
        images, labels = batch
        scores = self(images)
        right = (scores.argmax(1) == labels).float().mean()
        measured = {"valid_loss": F.cross_entropy(scores, labels), "valid_accuracy": right}
        self.log_dict(measured, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD; the head learns at 0.4 of the LR."""
        head = {"params": self.head.parameters(), "lr": 0.02}
        return torch.optim.SGD([{"params": self.body.parameters()}, head], lr=0.05, momentum=0.9)


images, labels = load_digits(return_X_y=True)
digits = torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)
loader = DataLoader(TensorDataset(*(part[:1200] for part in digits)), 24, shuffle=True)
valid_loader = DataLoader(TensorDataset(*(part[1200:] for part in digits)), 100)

knee = KneeCallback(steps=200, evaluate_every=20, minimize="valid_loss")
trainer = L.Trainer(accelerator="cpu", callbacks=[knee])
trainer.fit(Reader(arguments.width), loader, valid_loader)
