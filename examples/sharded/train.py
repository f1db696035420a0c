"""A network that reads 8x8 digits, sharded over the ranks by FSDP2: each has a part of everything.

knee-tune run train.py --nproc 2
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import knee_tune

world_size = int(os.environ.get("WORLD_SIZE", "1"))
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images / 16).float(), torch.tensor(labels)
digits = TensorDataset(images[:1200], labels[:1200])

model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.1), nn.Linear(48, 10))
sampler: DistributedSampler[tuple[torch.Tensor, ...]] | None = None
if world_size > 1:
    dist.init_process_group("gloo")
    sampler = DistributedSampler(digits)
    mesh = init_device_mesh("cpu", (world_size,))  # from the world size: the same in every run
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)  # of the shards, so made after them
loader = DataLoader(digits, 48 // world_size, sampler=sampler, shuffle=sampler is None)


def evaluate() -> dict[str, float]:
    """Loss and accuracy of the digits that are held out; on every rank, for all have a part."""
    model.eval()
    with torch.no_grad():
        scores, truth = model(images[1200:]), labels[1200:]
    model.train()
    right = (scores.argmax(1) == truth).float().mean()
    return {"valid_loss": float(F.cross_entropy(scores, truth)), "valid_accuracy": float(right)}


run = knee_tune.join(model, optimizer, steps=200, evaluate_every=20, minimize="valid_loss")
for inputs, targets in run.batches(loader):
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
    if run.evaluate_now:
        run.report(**evaluate())
run.finish(model)
