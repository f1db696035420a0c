"""A network that reads 8x8 digits, on any number of ranks: a plain loop that knee-tune can tune."""

import argparse
import os

import torch
import torch.distributed as dist
from network import network
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import knee_tune

parser = argparse.ArgumentParser()
parser.add_argument("--width", type=int, default=8)
arguments = parser.parse_args()

world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
if world_size > 1:
    dist.init_process_group("gloo")

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """The training digits, with noise."""

    def __len__(self) -> int:
        return 1200

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return images[index] + 0.1 * torch.randn(1, 8, 8), labels[index]


sampler = DistributedSampler(Digits(), world_size, rank, drop_last=True)
loader = DataLoader(Digits(), batch_size=48 // world_size, sampler=sampler, drop_last=True)
model = network(arguments.width)
body, head = model
groups = [{"params": body.parameters()}, {"params": head.parameters(), "lr": 0.02}]
optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
trained = model
if world_size > 1:  # looking for unused parameters it sums up the same bits wherever it begins
    trained = DistributedDataParallel(model, find_unused_parameters=True)


def evaluate() -> dict[str, float]:
    """Loss and accuracy of the digits that are held out."""
    model.eval()
    with torch.no_grad():
        scores, truth = model(images[1200:]), labels[1200:]
    model.train()
    right = (scores.argmax(1) == truth).float().mean()
    return {"valid_loss": float(F.cross_entropy(scores, truth)), "valid_accuracy": float(right)}


run = knee_tune.join(trained, optimizer, steps=200, evaluate_every=20, minimize="valid_loss")
for inputs, targets in run.batches(loader):
    F.cross_entropy(trained(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    if run.evaluate_now and rank == 0:
        run.report(**evaluate())
run.finish(model, serve="serve:load")
