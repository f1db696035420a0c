"""The commands. Every one parses its options, calls one function of the app, and prints."""

import json as json_module
import shlex
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from knee_tune.cli.audit import audit
from knee_tune.cli.budget import budget
from knee_tune.cli.options import (
    DEFAULT_HOME,
    DEFAULT_TRUNK_CACHE,
    Alias,
    Device,
    HomeOption,
    JsonOption,
    Runner,
    Schedule,
    StorageOption,
    StudyArgument,
    TrackingOption,
    TrialOption,
    TrunkCacheOption,
)
from knee_tune.cli.trunks import trunks_app
from knee_tune.cli.upkeep import doctor, prepare

if TYPE_CHECKING:
    from knee_tune.app.run import StudyStart
    from knee_tune.tuning.listeners import Watcher

app = typer.Typer(
    name="knee-tune",
    help="Find the seed LR and the explore fraction of a Knee learning-rate schedule.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Prepare data sets.", no_args_is_help=True)
data_app.command()(prepare)


@app.command()
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
        int | None, typer.Option(min=1, help="Trials of the whole study, finished ones included.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Start no trial, and confirm nothing, after this many seconds."),
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(min=1, help="Random seeds of every trial: 1 to explore, 3 to rank."),
    ] = None,
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="K:S",
            help="After the search, train the best K trials and the paper's default with S fresh "
            "random seeds; only a confirmed winner becomes champion.",
        ),
    ] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="Ranks that train one trial.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Trials trained at the same time.")] = 1,
    sampler: Annotated[str | None, typer.Option(help="gp, tpe, grid or random.")] = None,
    pruner: Annotated[
        str | None, typer.Option(help="knee, median, percentile, hyperband or none.")
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(help="best: the best point; ridge: the best fraction of every seed LR."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Random seed of the sampler and of every trial.")
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
        float | None, typer.Option(min=1e-12, help="Seed LR of --schedule. (default: the recipe's)")
    ] = None,
    device: Annotated[Device, typer.Option(help="What trains.")] = Device.AUTO,
    amp: Annotated[bool, typer.Option("--amp", help="bf16 autocast (GPU).")] = False,
    runner: Annotated[
        Runner, typer.Option(help="How worker groups are started.")
    ] = Runner.FORKSERVER,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines per trial (torchrun).")] = 1,
    launcher: Annotated[
        str, typer.Option(help="Command that starts torchrun, as in 'srun torchrun'.")
    ] = "torchrun",
    stall_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds without a sign of life before a rank is hung.")
    ] = 600,
    trunk_cache: TrunkCacheOption = DEFAULT_TRUNK_CACHE,
    register: Annotated[
        bool, typer.Option(help="Register the best model in MLflow at the end.")
    ] = True,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Search a task's seed LR and explore fraction. The same command again continues."""
    from knee_tune.app.baseline import run_baseline
    from knee_tune.app.home import Home, Places
    from knee_tune.app.request import StudyRequest
    from knee_tune.app.run import run_study
    from knee_tune.app.trunks import size_of_cache
    from knee_tune.app.workshop import GroupOptions
    from knee_tune.cli.summary import print_baseline, print_start, print_summary
    from knee_tune.cli.watch import PlainWatcher, watching
    from knee_tune.errors import UserError

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
        confirm=confirm,
        nproc=nproc,
        settings=tuple(settings or ()),
    )
    if schedule is None and seed_lr is not None:
        raise UserError("--seed-lr: goes with --schedule; for a study: --set recipe.seed_lr=VALUE")
    console = Console(highlight=False)
    spec, _ = request.resolve()
    options = GroupOptions(
        nproc=spec.nproc,
        nproc_asked=nproc is not None,
        slots=concurrency,
        runner=runner.value,
        nnodes=nnodes,
        launcher=tuple(shlex.split(launcher)),
        device=device.value,
        amp=amp,
        stall_timeout=stall_timeout,
        trunk_cache=size_of_cache(trunk_cache),
    )
    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    console.print(f"[bold]{spec.name}[/]: task {spec.task}, preset {spec.preset}; warming up ...")

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


@app.command()
def status(
    study: StudyArgument = None,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """How a study stands: trials, the best one, steps trained."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import look_at
    from knee_tune.cli.summary import print_status

    record = look_at(Places.of(Home(home), storage=storage, tracking_uri="none"), study)
    if json:
        typer.echo(json_module.dumps(record.status_as_json()))
    else:
        print_status(Console(highlight=False), record)


@app.command()
def best(
    study: StudyArgument = None,
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """The best seed LR and explore fraction found so far."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import look_at
    from knee_tune.errors import UserError

    record = look_at(Places.of(Home(home), storage=storage, tracking_uri="none"), study)
    found = record.best_as_json()
    if found is None:
        raise UserError(f"study {record.name}: no trial is complete yet")
    if json:
        typer.echo(json_module.dumps(found))
    else:
        typer.echo(
            f"seed LR {found['seed_lr']:g}, explore {found['explore_fraction']:.0%}: "
            f"{found['metric']} {found['value']:.4g} (trial {found['trial']} of {record.name})"
        )


@app.command()
def register(
    study: StudyArgument = None,
    trial: TrialOption = None,
    alias: Annotated[
        Alias | None,
        typer.Option(
            "--as", help="Alias. (default: champion, or candidate if a confirmation failed)"
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Test a study's winner once and put it into the MLflow model registry."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import look_at
    from knee_tune.app.winner import register_study
    from knee_tune.cli.confirmation import print_registered

    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    registered = register_study(
        places,
        look_at(places, study).name,
        number=trial,
        alias=alias.value if alias else None,
        untried="champion",  # who types this has decided
        on_line=typer.echo,
    )
    print_registered(Console(highlight=False), registered)


@app.command()
def replay(
    study: StudyArgument = None,
    trial: TrialOption = None,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Train a trial again from its recorded plan and compare."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import look_at
    from knee_tune.app.winner import replay as replay_trial
    from knee_tune.cli.summary import print_replay

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    record = look_at(places, study)
    console = Console(highlight=False)
    again = replay_trial(
        places,
        record.name,
        number=trial,
        on_report=lambda report: console.print(f"step {report.step}/{report.total_steps}"),
        on_line=typer.echo,
    )
    print_replay(console, again)


@app.command()
def dashboard(
    study: StudyArgument = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
) -> None:
    """Open Optuna Dashboard on 127.0.0.1."""
    from knee_tune.app.home import Home, Places
    from knee_tune.app.look import serve

    places = Places.of(Home(home), storage=storage, tracking_uri="none")
    serve(places, study, port=port, on_line=typer.echo)


@app.command()
def tasks(json: JsonOption = False) -> None:
    """What can be trained, and in which variants."""
    from dataclasses import asdict

    from knee_tune.app.look import list_tasks
    from knee_tune.cli.summary import print_tasks

    infos = list_tasks()
    if json:
        typer.echo(json_module.dumps({"tasks": [asdict(info) for info in infos]}))
    else:
        print_tasks(Console(highlight=False), infos)


app.add_typer(data_app, name="data")
app.add_typer(trunks_app, name="trunks")
app.command()(audit)
app.command()(budget)
app.command()(doctor)
