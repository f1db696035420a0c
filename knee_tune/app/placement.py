"""Where a slot of a study trains: which devices it gets, and in which arithmetic."""

import math
import os
from typing import TYPE_CHECKING

from knee_tune.errors import UserError
from knee_tune.planning.plan import Placement, TaskFacts

if TYPE_CHECKING:
    from knee_tune.app.workshop import GroupOptions


def placed(options: "GroupOptions", facts: TaskFacts, slot: int, *, amp: bool) -> Placement:
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
