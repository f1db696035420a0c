"""What happens in a study, as events: the tracker writes them down first and sends them later.

The driver states facts; which MLflow run, tag or status they become is decided in one place
(:mod:`knee_tune.tracking.runs`).
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from knee_tune.config.recipe import SearchedDecay, Spec
from knee_tune.records.findings import Confirmed
from knee_tune.records.values import RunEnd

STORED = {
    RunEnd.COMPLETE: "COMPLETE",
    RunEnd.PRUNED: "PRUNED",
    RunEnd.DIVERGED: "PRUNED",
    RunEnd.FAILED: "FAIL",
}
"""Each end of a run as an outbox spells it, which are Optuna's words."""

_READ = {word: end for end, word in STORED.items() if end is not RunEnd.DIVERGED}


def _read(word: Any) -> Any:
    return _READ.get(word, word) if isinstance(word, str) else word


StoredEnd = Annotated[
    RunEnd, BeforeValidator(_read), PlainSerializer(STORED.__getitem__, return_type=str)
]

StudyState = Literal["COMPLETE", "INTERRUPTED", "FAIL"]

Key = Annotated[str, Field(pattern=r"^[^'\"`\\\n]+$", max_length=250)]
"""What a run is found again by, so it has no quotes in it."""


class StudyStarted(Spec):
    """A driver begins or continues a study. Always the first event a tracker gets."""

    kind: Literal["study_started"] = "study_started"
    uid: Key = Field(description="unique for ever and the same when the study continues")
    name: Key = Field(description="Optuna's study name")
    task: str
    experiment: str = Field(description="MLflow experiment: one per task")
    params: dict[str, Any] = Field(default_factory=dict, description="may be nested")
    tags: dict[str, str] = Field(default_factory=dict)
    description: str = Field(default="", description="Markdown, shown above the run")
    objective: str = Field(
        default="",
        description="final metric of trials by which people want to see them; empty: none",
        exclude_if=lambda objective: not objective,
    )
    ascending: bool = Field(
        default=True,
        description="whether its best value is the lowest",
        exclude_if=lambda ascending: ascending,
    )


class TrialStarted(Spec):
    """Training of a trial, or of a baseline schedule, begins or is taken up again.

    ``key`` is the handle of all later events and unique in its study. A retried trial comes with
    the key of its first attempt and thereby continues the same MLflow run.
    """

    kind: Literal["trial_started"] = "trial_started"
    key: Key
    name: str = Field(description="what people read in the list of runs")
    schedule: str = "knee"
    number: int | None = Field(default=None, description="Optuna's; None for a baseline")
    seed_lr: float | None = None
    explore_fraction: float | None = None
    decay: SearchedDecay = None
    params: dict[str, Any] = Field(default_factory=dict, description="may be nested")
    tags: dict[str, str] = Field(default_factory=dict)


class TrialReported(Spec):
    """Metrics of one evaluation. A step that the run already has is not written again."""

    kind: Literal["trial_reported"] = "trial_reported"
    key: Key
    step: int = Field(ge=0)
    lr: float = Field(description="LR of this step; becomes the metric ``lr``")
    metrics: dict[str, float] = Field(default_factory=dict, description="finite values only")
    replicate: int = Field(
        default=0, ge=0, description="those of r > 0 are named ``replicate_<r + 1>/<metric>``"
    )


class TrialFinished(Spec):
    """The fate of a trial. ``metrics`` (final evaluation) should not repeat reported names."""

    kind: Literal["trial_finished"] = "trial_finished"
    key: Key
    state: StoredEnd
    step: int = Field(default=0, ge=0, description="the step that ``metrics`` belong to")
    metrics: dict[str, float] = Field(default_factory=dict, description="finite values only")
    reason: str = ""
    tags: dict[str, str] = Field(default_factory=dict)


def final_name(metric: str) -> str:
    """How trials call a metric of their final evaluation."""
    return f"final_{metric}"


class Attached(Spec):
    """An artifact of a trial (``key``) or of the study (None): exactly one kind of content.

    A ``file`` must stay where it is until it is sent. A ``figure`` is a plotly figure as a dict;
    its page is small because it loads plotly.js from the web.
    """

    kind: Literal["attached"] = "attached"
    key: Key | None = None
    name: str = Field(pattern=r"^\w[^\\\n]*$", description="as in plots/curves.html")
    file: Annotated[Path, AfterValidator(Path.absolute)] | None = None
    text: str | None = None
    figure: dict[str, Any] | None = None
    offline: Literal[False] = Field(
        default=False, exclude=True, description="in outboxes of earlier versions; never true"
    )

    @model_validator(mode="after")
    def _one_content(self) -> "Attached":
        if sum(content is not None for content in (self.file, self.text, self.figure)) != 1:
            raise ValueError("an artifact is either a file, a text or a figure")
        return self


class StudyFinished(Spec):
    """This driver is done with the study."""

    kind: Literal["study_finished"] = "study_finished"
    state: StudyState = "COMPLETE"
    metrics: dict[str, float] = Field(default_factory=dict, description="finite values only")
    tags: dict[str, str] = Field(default_factory=dict)


Event = Annotated[
    StudyStarted | TrialStarted | TrialReported | TrialFinished | Attached | StudyFinished,
    Field(discriminator="kind"),
]


class Recorded(Spec):
    """An event and when it happened. The time is fixed here, so sending twice is sending once."""

    at: int = Field(description="milliseconds since 1970")
    event: Event


class RunLink(Spec):
    """Where a trial's MLflow run is."""

    run_id: str
    url: str


Alias = Literal["champion", "candidate"]
"""What a version in the registry is called: to be used, or still to be confirmed."""


class TrainedModel(Spec):
    """A trial's model, as the registry needs it."""

    study_uid: str
    study: str
    task: str
    subject: str = Field(default="", description="that names its model; empty: the task")
    recipe: dict[str, Any]
    seed: int
    data_dir: Path
    weights: Path = Field(description="safetensors")
    key: Key = Field(description="of the trial")
    number: int | None
    seed_lr: float
    explore_fraction: float | None
    decay: SearchedDecay = None
    data_fingerprint: str
    metrics: dict[str, dict[str, float]] = Field(description="by split, as in valid, test")
    serve: str | None = Field(default=None, description="of a script: what makes it answer")
    experiment: str
    run_id: str | None = Field(default=None, description="None: found by ``key``")
    alias: Alias
    confirmed: Confirmed


class RegisteredModel(Spec):
    """A version in the model registry."""

    name: str
    version: int
    model_id: str
    run_id: str
    uri: str = Field(description="as in models:/knee-tune-digits@champion")
    url: str
    alias: Alias = Field(description="what it is called now; a champion stays one")
    confirmed: Confirmed
    new: bool = Field(description="False: a version already had this run's weights")
    answers: bool = Field(default=True, description="False: a script's weights and code, no more")
