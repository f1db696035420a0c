"""``knee-tune run``: a study, or a baseline beside it."""

import shlex
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from knee_tune.cli.options import (
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    LARGEST,
    MOST,
    MOST_SEED,
    SMALLEST,
    AmpOption,
    CompileOption,
    Device,
    HomeOption,
    PlainConsole,
    Runner,
    ScaleOption,
    Schedule,
    StorageOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
    refuse_failures,
)
from knee_tune.errors import UserError

if TYPE_CHECKING:
    from knee_tune.commands.run import StudyStart
    from knee_tune.study.events import Watcher


def run(
    task: Annotated[str | None, typer.Option(help="What to train; see knee-tune tasks.")] = None,
    preset: Annotated[str | None, typer.Option(help="Variant of the task.")] = None,
    study: Annotated[
        str | None, typer.Option(help="A study from studies/ by name, or a path to a YAML file.")
    ] = None,
    study_name: Annotated[
        str | None, typer.Option(help="Name to keep it under. (default: knee-TASK-BUDGET)")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, max=MOST, help="Trials of the whole study, finished ones included."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0, max=LARGEST, help="Start no trial, and confirm nothing, after this many seconds."
        ),
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Random seeds of every trial: 1 to explore, 3 to rank."),
    ] = None,
    fuse: Annotated[
        bool | None,
        typer.Option(
            "--fuse/--no-fuse",
            help="Train replicates, and an unpruned grid, as one batched model. (default: if the "
            "task can)",
        ),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="K:S",
            help="After the search, train the best K trials and the paper's default with S fresh "
            "random seeds; a winner that they confirm becomes the champion.",
        ),
    ] = None,
    scale: ScaleOption = None,
    nproc: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Ranks that train one trial.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=MOST, help="Trials trained at the same time.")
    ] = 1,
    sampler: Annotated[str | None, typer.Option(help="gp, tpe, grid or random.")] = None,
    pruner: Annotated[
        str | None, typer.Option(help="knee, median, percentile, hyperband or none.")
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(help="best: the best point; ridge: the best fraction of every seed LR."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=MOST_SEED, help="Random seed of the sampler and of every trial."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Any field: --set recipe.epochs=4"),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(help="Train this baseline once, outside the search, and stop."),
    ] = None,
    seed_lr: Annotated[
        float | None,
        typer.Option(
            min=SMALLEST, max=LARGEST, help="Seed LR of --schedule. (default: the recipe's)"
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="What trains.")] = Device.AUTO,
    trials_per_gpu: TrialsPerGpuOption = 1,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    runner: Annotated[
        Runner, typer.Option(help="How worker groups are started.")
    ] = Runner.FORKSERVER,
    nnodes: Annotated[
        int, typer.Option(min=1, max=MOST, help="Machines per trial (torchrun).")
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            help="With --nnodes: this machine's address for the other ones, where it listens. "
            "(default: what its host name stands for)"
        ),
    ] = None,
    launcher: Annotated[
        str, typer.Option(help="Command that starts torchrun, as in 'srun torchrun'.")
    ] = "torchrun",
    stall_timeout: Annotated[
        float,
        typer.Option(min=1, max=1e7, help="Seconds without a sign of life before a rank is hung."),
    ] = 600,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    register: Annotated[
        bool, typer.Option(help="Register the winner in MLflow at the end.")
    ] = True,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Search a task's seed LR and explore fraction. The same command again continues."""
    from knee_tune.cli.summary import print_baseline, print_start, print_summary
    from knee_tune.cli.watch import PlainWatcher, watching
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import size_of_cache
    from knee_tune.commands.opened import StudyRequest
    from knee_tune.commands.run import run_baseline, run_study
    from knee_tune.commands.workers import GroupOptions

    request = StudyRequest(
        task=task,
        study=study,
        preset=preset,
        name=study_name,
        trials=trials,
        sampler=sampler,
        pruner=pruner,
        goal=goal,
        seed=seed,
        replicates=replicates,
        fuse=fuse,
        confirm=confirm,
        nproc=nproc,
        scale=scale,
        settings=tuple(settings or ()),
    )
    if schedule is None and seed_lr is not None:
        raise UserError("--seed-lr: goes with --schedule; for a study: --set recipe.seed_lr=VALUE")
    console = PlainConsole()
    spec, _ = request.resolve()
    options = GroupOptions(
        nproc=spec.nproc,
        nproc_asked=request.nproc_asked,
        slots=concurrency,
        runner=runner.value,
        nnodes=nnodes,
        address=address,
        launcher=_words(launcher),
        device=device.value,
        trials_per_gpu=trials_per_gpu,
        amp=amp,
        compile=compile_,
        stall_timeout=stall_timeout,
        trunk_cache=size_of_cache(trunk_cache),
    )
    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    console.print(
        Text.assemble(
            (spec.name, "bold"), f": task {spec.task}, preset {spec.preset}; warming up ..."
        )
    )

    def watch(start: "StudyStart") -> AbstractContextManager["Watcher"]:
        print_start(console, start)
        if schedule is not None:  # one training needs no table
            return nullcontext(PlainWatcher(console, start))
        return watching(console, start)

    if schedule is not None:
        record = run_baseline(
            request, places, options, schedule_name=schedule.value, seed_lr=seed_lr, watch=watch
        )
        print_baseline(console, record, study=spec.name, metric=f"valid_{spec.recipe['objective']}")
        return
    summary = run_study(request, places, options, timeout=timeout, register=register, watch=watch)
    print_summary(console, summary, places)
    refuse_failures(summary.record)


def _words(launcher: str) -> tuple[str, ...]:
    """A command as the shell reads it; UserError if it cannot."""
    try:
        return tuple(shlex.split(launcher))
    except ValueError as error:
        raise UserError(f"--launcher {launcher}: {str(error).lower()}") from None
