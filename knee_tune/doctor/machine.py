"""Devices, cores and processes."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator

import psutil

from knee_tune.distributed.cores import usable_cores
from knee_tune.doctor.check import Check
from knee_tune.errors import first_line


def check_devices() -> Iterator[Check]:
    """GPUs and the collectives between ranks."""
    try:
        import torch
        import torch.distributed as dist
    except (ImportError, OSError) as error:
        yield Check("torch imports", False, first_line(error), "install torch again")
        return
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    driver = shutil.which("nvidia-smi") is not None
    yield Check(
        "gpu",
        bool(gpus) or not driver,
        ", ".join(gpus) or f"none; torch is built for CUDA {torch.version.cuda or '(no)'}",
        "an NVIDIA driver is here but torch sees no GPU: check its CUDA version against the driver",
    )
    available = dist.is_available()
    backends = [
        name
        for name, present in (
            ("gloo", available and dist.is_gloo_available()),
            ("nccl", available and dist.is_nccl_available()),
        )
        if present
    ]
    needed = {"gloo", "nccl"} if gpus else {"gloo"}
    yield Check(
        "collectives",
        needed <= set(backends),
        ", ".join(backends) or "none",
        f"runs with --nproc > 1 need {' and '.join(sorted(needed))}: use an official torch build",
    )


def check_cpu() -> Check:
    """Cores that this process may use, its threads and the memory."""
    memory = psutil.virtual_memory()
    threads = os.environ.get("OMP_NUM_THREADS")
    return Check(
        "cpu",
        memory.available > 2**30,
        f"{usable_cores()} cores"
        + (f", OMP_NUM_THREADS={threads}" if threads else "")
        + f", {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free",
        "less than 1 GiB of memory is free",
    )


def check_start_method() -> Check:
    """Whether worker groups can be forked from a warm server."""
    methods = multiprocessing.get_all_start_methods()
    return Check(
        "forkserver",
        "forkserver" in methods,
        ", ".join(methods),
        "this system cannot fork workers: use --runner torchrun",
    )
