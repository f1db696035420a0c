"""How worker groups are made, and where a slot of a study trains: its devices, its arithmetic."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from knee_tune.distributed.cores import usable_cores
from knee_tune.distributed.gathering import own_address
from knee_tune.errors import UserError
from knee_tune.planning.plan import Placement, TaskFacts

Device = Literal["auto", "cpu", "cuda"]

PROCESSES_PER_CORE, FEW_PROCESSES = 4, 64
"""Processes on one machine's CPUs that may be asked for: so many per core, or so many in all."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """How worker groups are made: the same for every trial of a command."""

    nproc: int = 1
    nproc_asked: bool = True
    """False: a preset's choice, which may move to the CPU where there are too few GPUs."""
    slots: int = 1
    runner: Literal["forkserver", "torchrun"] = "forkserver"
    nnodes: int = 1
    address: str | None = None
    """Of this machine, where the ranks of other machines reach it; None: its host name's."""
    launcher: Sequence[str] = ("torchrun",)
    device: Device = "auto"
    trials_per_gpu: int = 1
    """Slots that share a GPU: for models that do not fill one."""
    amp: bool | None = None
    """bf16 autocast; None: as the recipe says, where there is a GPU."""
    compile: bool = False
    stall_timeout: float = 600.0
    trunk_cache: int = 20_000_000_000
    """Bytes that trunk checkpoints may take; 0: none are kept, every run is trained alone."""

    @classmethod
    def as_placed(cls, placement: Placement) -> "GroupOptions":
        """Groups as one was placed before, for runs that are to have its bits."""
        return cls(
            nproc=placement.world_size,
            device=placement.device,
            amp=placement.amp,
            compile=placement.compile,
            stall_timeout=placement.stall_timeout,
            nproc_asked=False,  # the record says how many
        )

    def check(self) -> None:
        """UserError for options that contradict each other, or that this machine cannot serve.

        Starts nothing and makes nothing.
        """
        if self.runner != "torchrun" and (self.nnodes > 1 or tuple(self.launcher) != ("torchrun",)):
            raise UserError("--nnodes, --launcher: only --runner torchrun spans machines; add it")
        if self.nnodes > 1 and tuple(self.launcher) == ("torchrun",):
            raise UserError(
                f"--nnodes {self.nnodes}: nobody starts torchrun on the other machines; name who "
                "does, as in --launcher 'srun torchrun'"
            )
        if self.nnodes > 1:
            own_address(self.address)
        elif self.address is not None:
            raise UserError(
                f"--address {self.address}: the ranks of one machine need none; leave it out, or "
                "add --nnodes"
            )
        if self.runner == "forkserver":
            self._refuse_a_crowd()
        if self.nproc % self.nnodes:
            raise UserError(
                f"--nproc {self.nproc}: must be a multiple of --nnodes {self.nnodes}; it counts "
                "the ranks of all machines"
            )
        if self.trials_per_gpu > self.slots:
            raise UserError(
                f"--trials-per-gpu {self.trials_per_gpu}: there are never so many trials at the "
                f"same time; add --concurrency {self.trials_per_gpu}, or more for several GPUs"
            )
        if self.trials_per_gpu > 1 and self.nproc > 1:
            raise UserError(
                f"--trials-per-gpu {self.trials_per_gpu}: only trials of one rank share a GPU, a "
                f"trial of --nproc {self.nproc} needs one for each of its ranks; leave one of them "
                "out"
            )

    def _refuse_a_crowd(self) -> None:
        """UserError for far more processes than this machine has cores; GPUs bring their own bound.

        What a preset, a study or a record says is not concerned. Trials may share a GPU, the ranks
        of one trial never do.
        """
        ranks = self.nproc if self.nproc_asked else 1
        count = ranks if has_gpu(self.device) else ranks * self.slots
        cores = usable_cores()
        most = max(PROCESSES_PER_CORE * cores, FEW_PROCESSES)
        if count > most:
            asked = f"--nproc {self.nproc} " if self.nproc_asked else ""
            raise UserError(
                f"{asked}--concurrency {self.slots}: {count:,} processes are too "
                f"many for this machine, which has {cores} cores ({most} at most); lower one of "
                "them, or use more machines with --runner torchrun --nnodes"
            )


def has_gpu(device: Device) -> bool:
    """Whether a GPU is going to train, told from the device files: torch takes seconds to load."""
    if device == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        files = (*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg"))  # dxg: under WSL
        return not hidden and bool(files)
    return device == "cuda"


def placed(options: GroupOptions, facts: TaskFacts, slot: int, *, amp: bool) -> Placement:
    """The devices of a slot; ``amp`` is what the recipe wants where there is a GPU.

    UserError if this machine has fewer GPUs than were asked for, or none for what needs one.
    """
    device = options.device
    local, shared = options.nproc // options.nnodes, options.trials_per_gpu
    needed = local * math.ceil(options.slots / shared)
    if device == "auto":
        enough = local <= facts.gpus
        device = "cuda" if facts.gpus and (enough or options.nproc_asked) else "cpu"
    devices = None  # all that a rank sees; on other machines their names may differ
    if device == "cuda":
        if needed > facts.gpus:
            raise UserError(
                f"--nproc {options.nproc} --concurrency {options.slots}: needs {needed} GPUs on "
                f"this machine, which has {facts.gpus}; lower one of them, let small trials share "
                "one with --trials-per-gpu, or --device cpu"
            )
        if options.nnodes == 1 or options.slots > 1:
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            every = named.split(",") if named else [str(index) for index in range(facts.gpus)]
            first = slot // shared * local
            devices = ",".join(every[first : first + local])
    elif options.amp:
        raise UserError("--amp: bf16 training needs a GPU; leave it out on a CPU")
    elif shared > 1:
        raise UserError(
            f"--trials-per-gpu {shared}: there is no GPU to share on a CPU; leave it out, "
            "--concurrency alone says how many trials train at the same time"
        )
    return Placement(
        world_size=options.nproc,
        device=device,
        visible_devices=devices,
        amp=device == "cuda" and (amp if options.amp is None else options.amp),
        compile=options.compile,
        stall_timeout=options.stall_timeout,
    )
