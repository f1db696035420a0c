"""What a report shows that is not in the record of its study: when, where, and how to go on."""

from datetime import UTC, datetime

from pydantic import Field

from knee_tune.reporting.document import Command, Section, Table
from knee_tune.specs.base import Spec
from knee_tune.specs.importances import Importances


class ReportContext(Spec):
    """What a report shows that the record of its study does not hold."""

    written: float = Field(description="seconds since 1970, UTC")
    importances: Importances | None = None
    environment: dict[str, str] = Field(default_factory=dict, description="versions, devices, data")
    replay: tuple[Command, ...] = ()
    study_file: str = Field(default="", description="YAML with which the study can be run again")
    test: dict[int, dict[str, float]] = Field(
        default_factory=dict, description="metrics on the test split, by trial, where measured"
    )


def written_at(context: ReportContext) -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(context.written, UTC).isoformat(timespec="seconds")


def again_section(context: ReportContext, *, unit: str) -> Section:
    """Environment, versions, and how to get these numbers again; ``unit`` is a trial or a run."""
    return Section(
        key="again",
        title="Environment, and how to replay",
        words=(
            "Training is deterministic: with the same versions on the same kind of machine a "
            f"{unit} comes out the same, to the bit if its runs were trained one by one, up to "
            "rounding if they were trained together as one batched model.",
        ),
        tables=(
            Table(
                caption="Where the study was trained, and the versions that wrote this report",
                columns=("what", "which"),
                rows=tuple(context.environment.items()),
            ),
        )
        if context.environment
        else (),
        commands=context.replay
        + (
            (
                Command(
                    what="The whole study, with its settings: save this as study.yaml and type "
                    "knee-tune run --study study.yaml",
                    text=context.study_file,
                ),
            )
            if context.study_file
            else ()
        ),
    )
