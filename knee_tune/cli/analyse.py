"""``knee-tune analyse``: the paper's measures of a minimum, and the LR range test."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knee_tune.cli.console import ConsoleLines, PlainConsole
from knee_tune.cli.options import (
    COMPUTE,
    DEFAULT_HOME,
    LARGEST,
    MOST,
    MOST_SEED,
    SEARCH,
    SMALLEST,
    Device,
    DeviceOption,
    HomeOption,
    JsonOption,
    PresetOption,
    SeedOption,
    SettingsOption,
    StorageOption,
    StudyArgument,
    TaskOption,
    TrackingOption,
    TrialOption,
    path_of,
)

if TYPE_CHECKING:
    from knee_tune.commands.analyse import Analysed
    from knee_tune.config.study import Analysis

analyse_app = typer.Typer(
    help="How sharp a minimum is (sharpness, Fisher score); LR range test.", no_args_is_help=True
)

RowOption = Annotated[
    int | None,
    typer.Option(min=1, max=MOST, metavar="N", help="Of a comparison: its row, counted from 1."),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(parser=path_of, metavar="FILE", help="A safetensors file instead of a study."),
]
ExamplesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_SEED,
        metavar="N",
        help="Training examples, the first ones. (default: all)",
    ),
]
RanksOption = Annotated[
    int,
    typer.Option(
        "--nproc",
        min=1,
        max=MOST,
        metavar="N",
        help="Ranks that share the work.",
        rich_help_panel=COMPUTE,
    ),
]


@analyse_app.command()
def sharpness(
    study: StudyArgument = None,
    trial: TrialOption = None,
    row: RowOption = None,
    weights: WeightsOption = None,
    task: TaskOption = None,
    preset: PresetOption = None,
    settings: SettingsOption = None,
    seed: SeedOption = None,
    epsilon: Annotated[
        float,
        typer.Option(
            min=SMALLEST,
            metavar="X",
            max=LARGEST,
            help="The box: epsilon * (|weight| + 1) to either side.",
        ),
    ] = 1e-4,
    lr: Annotated[
        float, typer.Option(min=SMALLEST, metavar="X", max=LARGEST, help="Of the ascent.")
    ] = 1e-3,
    iterations: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="N", help="Steps of the ascent.")
    ] = 1000,
    examples: ExamplesOption = None,
    nproc: RanksOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """Keskar's sharpness (the paper's equation 1) by projected gradient ascent.

    How far the training loss can rise close to the weights, in percent of 1 + loss. Draws nothing.
    """
    from knee_tune.config.study import Sharpness

    _analyse(
        Sharpness(epsilon=epsilon, lr=lr, iterations=iterations, examples=examples),
        _Subject(study, trial, row, weights, task, preset, settings, seed),
        nproc=nproc,
        device=device,
        home=home,
        storage=storage,
        tracking_uri=tracking_uri,
        json=json,
    )


@analyse_app.command()
def fisher(
    study: StudyArgument = None,
    trial: TrialOption = None,
    row: RowOption = None,
    weights: WeightsOption = None,
    task: TaskOption = None,
    preset: PresetOption = None,
    settings: SettingsOption = None,
    seed: SeedOption = None,
    samples: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, metavar="N", help="Labels drawn from the model for every example."
        ),
    ] = 10,
    iterations: Annotated[
        int, typer.Option(min=1, max=MOST, metavar="N", help="Products with the matrix, at most.")
    ] = 100,
    tolerance: Annotated[
        float,
        typer.Option(min=1e-9, metavar="X", max=1, help="Relative error bound that ends them."),
    ] = 1e-3,
    label_seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, metavar="N", help="Random seed of the labels.")
    ] = 1,
    examples: ExamplesOption = None,
    nproc: RanksOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
) -> None:
    """The Fisher score (section 3.2.2): the largest eigenvalue of the true Fisher matrix."""
    from knee_tune.config.study import Fisher

    _analyse(
        Fisher(
            samples=samples,
            iterations=iterations,
            tolerance=tolerance,
            examples=examples,
            seed=label_seed,
        ),
        _Subject(study, trial, row, weights, task, preset, settings, seed),
        nproc=nproc,
        device=device,
        home=home,
        storage=storage,
        tracking_uri=tracking_uri,
        json=json,
    )


@analyse_app.command(name="lr-range")
def lr_range(
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What to train; see knee-tune tasks.", rich_help_panel=SEARCH
        ),
    ],
    preset: PresetOption = None,
    settings: SettingsOption = None,
    seed: SeedOption = None,
    low: Annotated[
        float, typer.Option(min=SMALLEST, metavar="X", max=LARGEST, help="LR of the first step.")
    ] = 1e-5,
    high: Annotated[
        float, typer.Option(min=SMALLEST, metavar="X", max=LARGEST, help="LR of the last step.")
    ] = 10.0,
    steps: Annotated[
        int, typer.Option(min=2, max=MOST, metavar="N", help="Steps from the one to the other.")
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_of, metavar="FILE", help="The plot, an HTML file. (default: in HOME)"
        ),
    ] = None,
    nproc: RanksOption = 1,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Smith's LR range test: the LR grows from step to step until the loss explodes.

    Its minimum, and a tenth of it: the paper's choice of one-cycle's maximum LR (appendix A).
    """
    from knee_tune.commands.analyse import lr_range_test
    from knee_tune.commands.home import Home
    from knee_tune.commands.opened import resolve_asked
    from knee_tune.commands.workers import GroupOptions

    spec = resolve_asked(task=task, preset=preset, settings=settings or (), seed=seed, nproc=nproc)
    lines = ConsoleLines(PlainConsole(stderr=json))
    test = lr_range_test(
        Home(home),
        spec,
        low=low,
        high=high,
        steps=steps,
        out=out,
        options=GroupOptions(nproc=nproc, device=device),
        lines=lines,
        on_step=_Tenths(lines, "step", of=steps),
    )
    reading = test.reading
    if json:
        found = {
            "task": test.task,
            "minimum_lr": reading.minimum_lr,
            "suggested_lr": reading.suggested_lr,
            "still_falling": reading.still_falling,
            "lrs": test.lrs,
            "losses": test.losses,
            "plot": str(test.page),
        }
        typer.echo(json_module.dumps(found))
        return
    ended = f"stopped at LR {test.lrs[-1]:.3g}: the loss exploded" if test.exploded else "done"
    lines.line(f"{ended}, after {len(test.lrs)} of {steps} steps")
    lines.line(f"lowest smoothed loss at LR {reading.minimum_lr:.3g}; plot: {test.page}")
    if reading.still_falling:
        lines.line(f"it still falls at the highest LR: try again with --high {high * 10:g}")
    lines.line(
        f"suggested maximum LR of one-cycle, one order lower: {reading.suggested_lr:.2g}, as in "
        f"--schedule one_cycle --seed-lr {reading.suggested_lr:.2g}"
    )


@dataclass(frozen=True)
class _Subject:
    """What is to be analysed, as options name it."""

    study: str | None
    trial: int | None
    row: int | None
    weights: Path | None
    task: str | None
    preset: str | None
    settings: list[str] | None
    seed: int | None

    def check(self) -> None:
        """UserError for options that do not go together."""
        from knee_tune.errors import UserError

        of_weights = {
            "--task": self.task,
            "--preset": self.preset,
            "--set": self.settings,
            "--seed": self.seed,
        }
        of_study = {"STUDY": self.study, "--trial": self.trial, "--row": self.row}
        if self.weights is None:
            strange = [name for name, value in of_weights.items() if value is not None]
            if strange:
                raise UserError(f"{', '.join(strange)}: goes with --weights; a study has its own")
        else:
            strange = [name for name, value in of_study.items() if value is not None]
            if strange:
                raise UserError(f"--weights: names what to analyse; leave {', '.join(strange)} out")
            if self.task is None:
                raise UserError("--weights: of which task? name it with --task")


class _Tenths:
    """Says how far something is, at most ten times; what falls back has begun anew."""

    def __init__(self, lines: ConsoleLines, what: str, *, of: int) -> None:
        self._lines, self._what, self._of, self._said = lines, what, of, 0

    def __call__(self, reached: int) -> None:
        tenth = 10 * reached // self._of
        self._said = min(self._said, tenth)
        if tenth > self._said:
            self._said = tenth
            self._lines.line(f"{self._what} {reached:,} of {self._of:,}")


def _analyse(
    analysis: "Analysis",
    subject: _Subject,
    *,
    nproc: int,
    device: Device,
    home: Path,
    storage: str | None,
    tracking_uri: str | None,
    json: bool,
) -> None:
    from knee_tune.commands.analyse import analyse_study, analyse_weights, looks
    from knee_tune.commands.home import Home, Places
    from knee_tune.commands.look import find_study
    from knee_tune.commands.opened import resolve_asked
    from knee_tune.commands.workers import GroupOptions

    subject.check()
    places = Places.of(Home(home), storage=storage, tracking_uri=tracking_uri)
    options = GroupOptions(nproc=nproc, device=device)
    lines = ConsoleLines(PlainConsole(stderr=json))
    on_look = _Tenths(lines, f"{analysis.name}:", of=looks(analysis))
    if subject.weights is not None:
        spec = resolve_asked(
            task=subject.task,
            preset=subject.preset,
            settings=subject.settings or (),
            seed=subject.seed,
            nproc=nproc,
        )
        found = [
            analyse_weights(
                places,
                spec,
                subject.weights,
                analysis,
                options=options,
                lines=lines,
                on_look=on_look,
            )
        ]
    else:
        found = analyse_study(
            places,
            find_study(places, subject.study).study_name,
            analysis,
            number=subject.trial,
            row=subject.row,
            options=options,
            lines=lines,
            on_look=on_look,
        )
    if json:
        settings = analysis.model_dump(mode="json")
        typer.echo(
            json_module.dumps({"analysis": settings, "results": [_as_json(each) for each in found]})
        )
        return
    for each in found:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in each.metrics.items())
        tracked = f" (in MLflow: {each.run.url})" if each.run else ""
        lines.line(f"{each.subject.name}: {shown}{tracked}")


def _as_json(found: "Analysed") -> dict[str, Any]:
    return {
        "name": found.subject.name,
        "weights": str(found.subject.weights),
        "seed": found.subject.seed,
        **found.metrics,
        "run_id": found.run.run_id if found.run else None,
    }
