"""``knee-tune run``: a study, or a baseline beside it."""

import math
import shlex
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.text import Text

from knee_tune.cli.console import PlainConsole
from knee_tune.cli.options import (
    COMPUTE,
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    LARGEST,
    MOST,
    OF_A_SCRIPT,
    PLACES,
    SEARCH,
    SMALLEST,
    AmpOption,
    CompileOption,
    DeviceOption,
    EvaluateEveryOption,
    ExploreOption,
    HomeOption,
    MaximizeOption,
    MinimizeOption,
    NprocOption,
    PresetOption,
    ReplicatesOption,
    RunnerOption,
    ScaleOption,
    Schedule,
    ScriptArgument,
    ScriptArguments,
    SeedOption,
    SettingsOption,
    SharedLimitOption,
    SharedOption,
    SlotsOption,
    StorageOption,
    Strategy,
    TaskOption,
    TrackingOption,
    TrialsPerGpuOption,
    TrunkCacheOption,
)
from knee_tune.errors import UserError
from knee_tune.schedules.schedule import LONGEST_RUN

if TYPE_CHECKING:
    from knee_tune.commands.run import StudyStart
    from knee_tune.study.events import Watcher


BASELINE = "A baseline instead"
"""A panel of ``--help``."""


def run(
    script: ScriptArgument = None,
    arguments: ScriptArguments = None,
    task: TaskOption = None,
    preset: PresetOption = None,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A study from studies/ by name, or a path to a YAML file.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    study_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name to keep it under. (default: knee-TASK-BUDGET)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            metavar="N",
            help="Trials of the whole study, finished ones included.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            metavar="VALUE",
            help="End the search once a trial is as good, as in 35.0.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    stop_when_flat: Annotated[
        bool,
        typer.Option(
            "--stop-when-flat",
            help="End the search once no point left is expected to be worth its cost (gp).",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=LARGEST,
            metavar="SECONDS",
            help="Start no trial and no other run after so long.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="gp, tpe, grid or random.", rich_help_panel=SEARCH),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="bracket|random",
            help="What gp and tpe begin with: seed LRs around the best one, or random points. "
            "(default: bracket)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    from_study: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STUDY",
            help="An earlier study of the same task: begin at its best seed LR, and learn from it.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="knee, median, percentile, hyperband or none. (default: none with gp, else knee)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            metavar="best|ridge",
            help="The best point, or the best fraction of every seed LR.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    replicates: ReplicatesOption = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="K:S",
            help="After the search, train the best K trials and the default with S fresh "
            "random seeds; a winner that they confirm becomes the champion.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    total_runs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Train N whole runs in all: a search, then a race of its best points and the "
            "default on fresh random seeds. Instead of --trials and --confirm.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    total_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same, in steps.", rich_help_panel=SEARCH),
    ] = None,
    seed: SeedOption = None,
    scale: ScaleOption = None,
    settings: SettingsOption = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            metavar="NAME",
            help="Train this baseline once, outside the search, and stop: "
            f"{', '.join(get_args(Schedule))}.",
            rich_help_panel=BASELINE,
        ),
    ] = None,
    seed_lr: Annotated[
        str | None,
        typer.Option(
            metavar="LOW:HIGH|LIST",
            help="Seed LRs to search, as in 1e-4:1e-2 or 0.1,0.2; with --schedule the one to "
            "train. (default: the study's)",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    explore: ExploreOption = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=LONGEST_RUN,
            metavar="N",
            help="Budget of one run. (default: as join says)",
            rich_help_panel=OF_A_SCRIPT,
        ),
    ] = None,
    evaluate_every: EvaluateEveryOption = None,
    minimize: MinimizeOption = None,
    maximize: MaximizeOption = None,
    nproc: NprocOption = None,
    slots: SlotsOption = 1,
    device: DeviceOption = "auto",
    trials_per_gpu: TrialsPerGpuOption = 1,
    fuse: Annotated[
        bool | None,
        typer.Option(
            "--fuse/--no-fuse",
            help="Train replicates, and an unpruned grid, as one batched model. (default: if the "
            "task can)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    amp: AmpOption = None,
    compile_: CompileOption = False,
    runner: RunnerOption = "forkserver",
    nnodes: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST,
            metavar="N",
            help="Machines per trial (torchrun).",
            rich_help_panel=COMPUTE,
        ),
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="With --nnodes or ray: this machine's address for the other ones, where it "
            "listens. (default: what its host name stands for)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(
            metavar="COMMAND",
            help="Command that starts torchrun, as in 'srun torchrun'.",
            rich_help_panel=COMPUTE,
        ),
    ] = "torchrun",
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ray cluster of --runner ray: auto, HOST:PORT or ray://HOST:PORT. (default: the "
            "one of RAY_ADDRESS or of this machine, else a new one)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    strategy: Annotated[
        Strategy | None,
        typer.Option(
            metavar="NAME",
            help="Where Ray puts the ranks of a trial: pack (few nodes) or spread. (default: pack)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    cpus_per_rank: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=MOST,
            metavar="N",
            help="CPUs that Ray sets aside for a rank. (default: 1)",
            rich_help_panel=COMPUTE,
        ),
    ] = None,
    stall_timeout: Annotated[
        float,
        typer.Option(
            min=1,
            max=1e7,
            metavar="SECONDS",
            help="How long without a sign of life before a rank is hung.",
            rich_help_panel=COMPUTE,
        ),
    ] = 600,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    shared: SharedOption = None,
    shared_limit: SharedLimitOption = None,
    tracking_uri: TrackingOption = None,
    register: Annotated[
        bool,
        typer.Option(
            "--register/--no-register",
            help="Register the winner in MLflow at the end.",
            rich_help_panel=PLACES,
        ),
    ] = True,
) -> None:
    """Search the seed LR and explore fraction of a training script, or of a task.

    The same command again continues.
    """
    from knee_tune.cli.summary import (
        print_baseline,
        print_start,
        print_summary,
        refuse_failures,
    )
    from knee_tune.cli.watch import PlainWatcher, watching
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import size_of_cache, size_of_limit
    from knee_tune.commands.opened import resolve_asked
    from knee_tune.commands.run import run_baseline, run_study
    from knee_tune.commands.script import look_at_script
    from knee_tune.commands.workers import GroupOptions, Looked
    from knee_tune.config.recipe import BaseRecipe, task_slug
    from knee_tune.config.resolve import sets
    from knee_tune.config.study import ResolvedStudy

    search_lr, baseline_lr = _seed_lrs(seed_lr, baseline=schedule is not None)
    fields: dict[str, object] = {
        "name": study_name,
        "trials": trials,
        "target": target,
        "stop_when_flat": stop_when_flat or None,
        "sampler": sampler,
        "start": start,
        "from_study": from_study,
        "pruner": pruner,
        "goal": goal,
        "seed": seed,
        "replicates": replicates,
        "fuse": fuse,
        "confirm": confirm,
        "total_runs": total_runs,
        "total_steps": total_steps,
        "nproc": nproc,
        "scale": scale,
        "seed_lr": search_lr,
        "explore": explore,
        "steps": steps,
        "evaluate_every": evaluate_every,
        "minimize": minimize,
        "maximize": maximize,
    }
    asked = tuple(settings or ())
    spec: ResolvedStudy[BaseRecipe]
    if script is None:
        if (steps, evaluate_every, minimize, maximize) != (None, None, None, None):
            raise UserError(
                "`steps`, `evaluate_every`, `minimize`, `maximize`: of scripts alone; a task has "
                "--set recipe.epochs (or recipe.steps) and recipe.objective"
            )
        spec = resolve_asked(task=task, study=study, preset=preset, settings=asked, **fields)
    elif (task, study, preset) != (None, None, None):
        raise UserError(
            "`task`, `study`, `preset`: of tasks alone; leave them out for a script, whose study "
            "gets a name with `study_name`"
        )
    options = GroupOptions(
        nproc=nproc or 1 if script else spec.nproc,
        nproc_asked=nproc is not None or sets(asked, "nproc"),
        slots=slots,
        runner=runner,
        nnodes=nnodes,
        address=address,
        launcher=_words(launcher),
        ray_address=ray_address,
        strategy=strategy,
        cpus_per_rank=cpus_per_rank,
        device=device,
        trials_per_gpu=trials_per_gpu,
        amp=amp,
        compile=compile_,
        stall_timeout=stall_timeout,
        trunk_cache=size_of_cache(trunk_cache),
        shared=shared,
        shared_limit=size_of_limit(shared_limit),
    )
    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    console = PlainConsole()
    with ExitStack() as stack:
        looked: Looked | None = None
        if script is None:
            what = f": task {task_slug(spec.task)}, preset {spec.preset}; warming up ..."
            console.print(Text.assemble((spec.name, "bold"), what))
        else:
            if script.is_file():
                console.print(Text.assemble((str(script), "bold"), ": up to knee_tune.join ..."))
            looking = look_at_script(
                places.home, script, arguments or (), options, settings=asked, **fields
            )
            spec, looked = stack.enter_context(looking)
            console.print(Text.assemble("study ", (spec.name, "bold")))

        def watch(start: "StudyStart") -> AbstractContextManager["Watcher"]:
            print_start(console, start)
            if schedule is not None:  # one training needs no table
                return nullcontext(PlainWatcher(console, start))
            return watching(console, start)

        if schedule is not None:
            record = run_baseline(
                spec,
                places,
                options,
                schedule_name=schedule,
                seed_lr=baseline_lr,
                watch=watch,
                looked=looked,
            )
            print_baseline(
                console, record, study=spec.name, metric=spec.typed_recipe.objective_metric.name
            )
            return
        summary = run_study(
            spec,
            places,
            options,
            timeout=timeout,
            register=register,
            watch=watch,
            looked=looked,
        )
        print_summary(console, summary, places)
        refuse_failures(summary.record)


def _seed_lrs(text: str | None, *, baseline: bool) -> tuple[str | None, float | None]:
    """What to search of ``--seed-lr``, and what a baseline trains at; UserError for neither."""
    if text is None:
        return None, None
    if not baseline:
        if ":" in text or "," in text:
            return text, None
        raise UserError(
            f"`seed_lr` {text}: a search needs LOW:HIGH or a list; one value goes with `schedule`, "
            "and the default of a search is --set recipe.seed_lr=VALUE"
        )
    try:
        lr = float(text)
    except ValueError:
        lr = math.nan
    if not SMALLEST <= lr <= LARGEST:
        raise UserError(
            f"`seed_lr` {text}: with `schedule` it is one number from {SMALLEST:g} to {LARGEST:g}"
        )
    return None, lr


def _words(launcher: str) -> tuple[str, ...]:
    """A command as the shell reads it; UserError if it cannot."""
    try:
        return tuple(shlex.split(launcher))
    except ValueError as error:
        raise UserError(f"--launcher {launcher}: {str(error).lower()}") from None
