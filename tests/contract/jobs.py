"""Tiny jobs for the group runners. ``DescribePlan.recipe`` says what a job does.

``{"what": ..., "rank": r, "steps": n}``: train ``n`` steps of nothing, each with one collective,
and let ``what`` happen on rank ``r`` at step 3.
"""

import logging
import os
import signal
import sys
import time
import warnings
from typing import Any

import torch

from knee_tune.errors import UserError
from knee_tune.plans.plan import Plan
from knee_tune.workers.group import Group
from knee_tune.workers.protocol import Channel, Done, Report

EVENT_STEP = 3


def job(plan: Plan, group: Group, channel: Channel) -> Done:
    """Add up the ranks at every step, report every second one, stop when told to.

    Of a real task: what every rank does.
    """
    if plan.task != "none":
        from knee_tune.jobs import run_job  # most tests need none of it

        return run_job(plan, group, channel)
    recipe = plan.recipe
    steps = recipe.get("steps", 6)
    total = 0.0
    began = time.monotonic()
    for step in range(1, steps + 1):
        if recipe.get("gather") and step == EVENT_STEP:
            group.gather(_Program() if recipe["gather"] == group.rank else 0)
        if step == EVENT_STEP and group.rank == recipe.get("rank", 0):
            _happen(recipe.get("what", "nothing"), channel)
        (total,) = group.sum([total / group.world_size + group.rank + 1])
        channel.progress(step)
        if step % 2 == 0:
            stop = False
            if group.leads:
                report = Report(
                    step=step,
                    total_steps=steps,
                    metrics={"total": total},
                    seconds=time.monotonic() - began,
                )
                stop = channel.report(report).stop
            if group.agree(stop):
                return Done(state="stopped", step=step, result={"ranks": group.gather(step)})
    result = {
        "total": total,
        "pids": group.gather(os.getpid()),
        "threads": torch.get_num_threads(),
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }
    return Done(state="complete", step=steps, result=result)


class _Program:
    """What a stranger to the group would send: it runs where it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("I ran",)


def _happen(what: str, channel: Channel) -> None:
    match what:
        case "nothing":
            pass
        case "exception":
            raise ValueError("no such luck\nand more of it")
        case "user error":
            raise UserError("recipe.data=x: no such data; prepare it\nand more of it")
        case "cuda out of memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        case "memory error":
            raise MemoryError
        case "too large a tensor":
            torch.empty(1 << 60)
        case "exit":
            os._exit(3)
        case "exit 0":
            os._exit(0)
        case "sys.exit":
            sys.exit("enough")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(600)
        case "child":
            if os.fork():
                os._exit(3)
            time.sleep(600)
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        case "talk":
            print("for the log")  # noqa: T201
            channel.line("for the people")
            warnings.warn("careful", stacklevel=1)
            logging.getLogger("some.library").warning("watch out")
            logging.getLogger("some.library").info("never mind")
        case _:
            raise AssertionError(what)
