"""Which study a person asks for, and what it comes to once files and options are merged."""

from dataclasses import dataclass

from knee_tune.specs.files import read_files
from knee_tune.specs.overrides import parse_override
from knee_tune.specs.recipe import Recipe
from knee_tune.specs.resolve import resolve_study
from knee_tune.specs.study import StudySpec
from knee_tune.tasks.registry import task_entry


@dataclass(frozen=True, kw_only=True)
class StudyRequest:
    """A study as files and options name it; None leaves the choice to the files."""

    task: str | None = None
    study: str | None = None
    """A file from ``studies/`` by name, or a path."""
    preset: str | None = None
    name: str | None = None
    trials: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    goal: str | None = None
    seed: int | None = None
    replicates: int | None = None
    fuse: bool | None = None
    confirm: str | None = None
    nproc: int | None = None
    scale: float | None = None
    """Of all epochs: a fifth of the paper's budget is 0.2."""
    settings: tuple[str, ...] = ()

    @property
    def nproc_asked(self) -> bool:
        """Whether an option says how many ranks there are, not the files."""
        overrides = map(parse_override, self.settings)
        return self.nproc is not None or any(each.path == ("nproc",) for each in overrides)

    def resolve(self) -> tuple[StudySpec, Recipe]:
        """The validated study and its typed recipe; UserError otherwise. Creates nothing."""
        if self.task is not None:
            task_entry(self.task)  # an unknown task is refused before its file is looked for
        space_file, study_file = read_files(task=self.task, study=self.study)
        return resolve_study(
            space_file=space_file,
            study_file=study_file,
            recipe_type=lambda name: task_entry(name).recipe_type(),
            preset=self.preset,
            settings=self.settings,
            name=self.name,
            trials=self.trials,
            sampler=self.sampler,
            pruner=self.pruner,
            goal=self.goal,
            seed=self.seed,
            replicates=self.replicates,
            fuse=self.fuse,
            confirm=self.confirm,
            nproc=self.nproc,
            scale=self.scale,
        )
