"""A rank's job that is a script: run it as ``python script.py arguments`` would, and tell."""

import runpy
import sys
import sysconfig
import traceback
from pathlib import Path

import torch

from knee_tune.errors import UserError, disk_trouble, first_line
from knee_tune.plans.plan import DescribePlan, Plan, TaskFacts, TrainPlan
from knee_tune.scripts import batches
from knee_tune.scripts.recipe import JOINED
from knee_tune.scripts.run import Ended, FirstLook, Rank, Run
from knee_tune.tasks.seeding import seed_beside_torch
from knee_tune.workers.group import Group, ran_out_of_memory
from knee_tune.workers.protocol import Channel, Done

_OURS = str(Path(__file__).parents[1])

_BATCHES = batches.__file__

_STDLIB = str(Path(sysconfig.get_paths()["stdlib"]).resolve())

_LIBRARIES = ("/site-packages/", "/dist-packages/")


def run_script(plan: Plan, group: Group, channel: Channel) -> Done:
    """Run the plan's script on this rank; the answer of its run, or what it is that is trained.

    UserError for what its author has to fix: an exception of the script is one.
    """
    if not isinstance(plan, TrainPlan | DescribePlan):
        raise UserError(f"a script does its own evaluations: {plan.job} needs a task")
    script = Path(plan.recipe["script"])
    if not script.is_file():
        raise UserError(f"{script}: the script is gone; put it back")
    rank = Rank.here = Rank(plan, group, channel)
    sys.argv = [str(script), *plan.recipe.get("arguments", ())]
    sys.path.insert(0, str(script.parent))
    torch.manual_seed(plan.seed)
    seed_beside_torch(plan.seed)
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Ended:
        pass
    except SystemExit as end:
        if end.code not in (None, 0):
            raise UserError(
                f"{script.name}: it exited with {end.code!r}{_log(plan, group)}"
            ) from end
    except UserError as error:
        raise UserError(f"{_who(script, group)}: {error}") from error
    except Exception as error:
        if disk_trouble(error) or ran_out_of_memory(error):
            raise
        place = _place(error)
        if place is None:
            raise
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{place}: {what}{_log(plan, group)}") from error
    if isinstance(plan, DescribePlan):
        return _described(rank, script)
    return rank.done or _left(rank.run, group, script)


def _left(run: Run | None, group: Group, script: Path) -> Done:
    """The answer of a rank whose script came to its end without ``finish``.

    Rank 0 has to say it; of the others it is enough that they made every step. UserError otherwise.
    """
    who = _who(script, group)
    if run is None:
        raise UserError(
            f"{who}: ended without knee_tune.join(...); call it when model and optimizer are made"
        )
    if not run.begun:
        raise UserError(
            f"{who}: ended without a step; its loop takes them from run.steps() or run.batches()"
        )
    if not run.ended:
        raise UserError(
            f"{who}: left its loop at step {run.step} of {run.total_steps}; let run.steps() or "
            "run.batches() end it, or train fewer with `steps`"
        )
    if group.leads:
        raise UserError(f"{who}: ended without run.finish(model); call it after the loop")
    return Done(state="complete", step=run.step)


def _who(script: Path, group: Group) -> str:
    """Whose mistake it is: of a rank that may have parted from rank 0 its number counts."""
    return script.name if group.leads else f"{script.name}: rank {group.rank}"


def _described(rank: Rank, script: Path) -> Done:
    """The facts of the script's model and data, and what it said to ``join``."""
    run = rank.run
    if run is None or rank.joined is None:
        _left(None, rank.group, script)
    assert isinstance(run, FirstLook)
    facts = TaskFacts(
        steps_per_epoch=1,
        data_fingerprint=run.fingerprint,
        parameters=run.parameters,
        examples={},
        modules=local_modules(),
        cpu=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        unfusable="a script trains its own model",
        gpus=torch.cuda.device_count(),
        mesh=run.mesh,
    )
    assert rank.joined is not None
    return Done(state="complete", result=facts.model_dump() | {JOINED: rank.joined.model_dump()})


def local_modules() -> tuple[str, ...]:
    """Modules imported by now whose files are nobody's library: the script's own."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return tuple(
        sorted(name for name, file in files.items() if file and name != "__main__" and _local(file))
    )


def _local(file: str) -> bool:
    if any(folder in file for folder in _LIBRARIES):
        return False
    path = Path(file).resolve()
    return path.is_file() and not str(path).startswith((_OURS, _STDLIB))


def _place(error: Exception) -> str | None:
    """Where in the script's own code it was raised: ``train.py:41``; None: in ours.

    Of a library's error it is where the script called it, and of one of a loader its loop over the
    batches.
    """
    if isinstance(error, SyntaxError) and error.filename and _local(error.filename):
        return f"{Path(error.filename).name}:{error.lineno}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        if file == _BATCHES or frame.f_code.co_name == Run.batches.__name__:
            continue  # what they call is the script's: its data set, its collate function
        if str(Path(file).resolve()).startswith(_OURS):
            return None
        if _local(file):
            return f"{Path(file).name}:{line}"
    return None


def _log(plan: Plan, group: Group) -> str:
    return f"; its log: {plan.log_dir / f'rank-{group.rank}.log'}"
