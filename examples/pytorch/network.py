"""The network of train.py."""

from torch import nn


def network(width: int) -> nn.Sequential:
    """Return a small CNN for images (n, 1, 8, 8) of ten digits: its body, then its head."""
    body = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
    )
    return nn.Sequential(body, nn.Linear(16 * width, 10))
