"""What a device is, and what it can do at most: the frame of other figures."""

import platform
from typing import TYPE_CHECKING

from knee_tune.workers.cores import usable_cores

if TYPE_CHECKING:
    from knee_tune.tasks.vision.cifar10 import Cifar10Task

CORES = usable_cores()
FLOPS_BATCH = 8
"""Images whose operations are counted."""


def flops_per_image(task: "Cifar10Task") -> float:
    """Operations of one image, forward and backward; a multiplication and an addition are two."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, side = task.build_model(), task.recipe.side
    images = torch.zeros(FLOPS_BATCH, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return float(counter.get_total_flops()) / FLOPS_BATCH


def matmul_peak(size: int = 8192, repeats: int = 20) -> float:
    """Operations per second of the product of two bf16 matrices on the GPU."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(5):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        for _ in range(repeats):
            a @ b
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000 / repeats)
    return float(2 * size**3 / min(seconds))


def device_name(device: str) -> str:
    """What the figures hold for."""
    if device == "cpu":
        return f"{CORES} CPU cores, {platform.processor() or platform.machine()}"
    import torch

    return str(torch.cuda.get_device_name())
