"""``knee-tune report``: a study's records, statistics and surroundings as one document."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from knee_tune.commands.home import Places
from knee_tune.commands.look import find_study
from knee_tune.commands.winner import TEST_PREFIX
from knee_tune.config.study import SEARCHING, StudySpec
from knee_tune.errors import UserError, disk_trouble
from knee_tune.files import write_whole
from knee_tune.plans.plan import SCRIPT
from knee_tune.records.study import StudyRecord
from knee_tune.report.answer import winner_knee, winner_setting
from knee_tune.report.document import Command, Report, ReportContext, as_html, as_markdown
from knee_tune.report.report import build_report
from knee_tune.schedules import settings
from knee_tune.study.study import Study, importances_of, study_record
from knee_tune.tracking import provenance

if TYPE_CHECKING:
    from knee_tune.records.findings import Ridge
    from knee_tune.stats.comparison import Comparison

Format = Literal["html", "md", "json"]


def study_report(places: Places, name: str | None) -> Report:
    """The report of that study, whatever it did; without a name, of the only one there is.

    UserError if there is none, or if none of its trials (of a comparison: its runs) is complete.
    """
    study = find_study(places, name)
    record = study_record(study)
    return report_of(study, places, record=record, statistics=statistics_of(record))


def setting_to_use(record: StudyRecord, form: settings.Format) -> settings.Setting:
    """The schedule of a search's winner as the project ``form`` writes it.

    UserError if its trials do not say how many steps they have, as those of early versions do not,
    and if the project cannot write such a schedule.
    """
    knee = winner_knee(record)
    if knee is None:
        raise UserError(
            f"study {record.name}: its trials do not say how many steps they have; "
            "the run command continues it, and a trial more will say so"
        )
    try:
        return winner_setting(record, knee, form)
    except ValueError as error:
        raise UserError(f"`as` {form}: {error}") from error


def statistics_of(
    record: StudyRecord, *, resamples: int | None = None
) -> "Ridge | Comparison | None":
    """All that is computed of a search or of a comparison; None if nothing of it is complete.

    ``resamples=0`` is quick, and a search has no intervals then.
    """
    from knee_tune.stats.comparison import comparison_of  # slow
    from knee_tune.stats.ridge import RESAMPLES, ridge_of  # slow

    if record.spec.compare is None:
        return ridge_of(record, resamples=RESAMPLES if resamples is None else resamples)
    done = any(run.state == "complete" for run in record.compared)
    return comparison_of(record) if done else None


def report_of(
    study: Study,
    places: Places,
    *,
    record: StudyRecord,
    statistics: "Ridge | Comparison | None",
) -> Report:
    """The report of a study whose record and statistics are at hand; UserError as above."""
    compares = record.spec.compare is not None
    if (not compares and record.best is None) or (compares and statistics is None):
        raise UserError(
            f"study {record.name}: no {'run' if compares else 'trial'} is complete yet, so there "
            "is nothing to report"
        )
    noted = study.user_attrs  # a query of the storage each time it is asked for
    test = {
        trial.number: noted[f"{TEST_PREFIX}{trial.key}"]
        for trial in record.trials
        if f"{TEST_PREFIX}{trial.key}" in noted
    }
    context = ReportContext(
        written=time.time(),
        importances=None if compares else importances_of(study, seed=record.spec.seed),
        environment=_environment(study, record),
        replay=_replay(places, record, tested=test),
        study_file=_study_file(record.spec),
        test=test,
    )
    return build_report(record, statistics, context=context)


def text_of(report: Report, form: Format) -> str:
    """The report as a file of that format."""
    match form:
        case "html":
            return as_html(report)
        case "md":
            return as_markdown(report)
        case "json":
            # In ASCII: it is printed too, and steers no terminal.
            return json.dumps(json.loads(report.model_dump_json()), indent=2) + "\n"


def write_report(report: Report, path: Path, form: Format) -> Path:
    """Write it, the whole of it or nothing; UserError if the file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text_of(report, form))
    except OSError as error:
        if disk_trouble(error):
            raise
        raise UserError(
            f"report {path}: cannot be written ({error.strerror}); name a file elsewhere"
        ) from error
    return path


def usual_path(places: Places, study: str, form: Format) -> Path:
    """``<home>/reports/<study>.<format>``."""
    return places.home.root / "reports" / f"{study}.{form}"


def _environment(study: Study, record: StudyRecord) -> dict[str, str]:
    """Where it was trained, as its newest plan says, and the versions that read it now."""
    plans = (trial.user_attrs.get("plan") for trial in reversed(study.get_trials(deepcopy=False)))
    plan = next((plan for plan in plans if plan), None)
    if record.task == SCRIPT:
        facts = {"script": str(record.spec.recipe["script"])}
    else:
        facts = {"task": record.task, "preset": record.spec.preset}
    if plan is not None:
        placement = plan["placement"]
        facts["device"] = placement["device"] + (", bf16" if placement["amp"] else "")
        facts["ranks"] = str(placement["world_size"])
        noted = plan.get("facts")  # not by versions before
        if noted and (counts := noted["examples"].items()):  # nobody counts those of a script
            counted = str(study.user_attrs.get("counted", "examples"))
            facts[counted] = ", ".join(f"{count:,} {split}" for split, count in counts)
    seeds = record.spec.replicate_seeds
    facts["random seeds"] = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    if record.spec.compare is None:
        sampler, start = record.spec.sampler, record.spec.start
        begun = f", {start} start" if sampler in ("gp", "tpe") else ""
        facts["search"] = f"{sampler} sampler{begun}, {record.spec.acting_pruner} pruner"
        if record.earlier is not None:
            facts["search"] += f", {record.earlier.words}"
    codes = {code or "not noted": what for code, what in record.codes.items()}
    facts |= {f"code {code}": what for code, what in codes.items()}
    facts["data fingerprint"] = str(study.user_attrs.get("data_fingerprint", "unknown"))
    tags = provenance()
    versions = {
        name.removeprefix("version."): value
        for name, value in tags.items()
        if not name.startswith("mlflow.")
    }
    commit = tags.get("mlflow.source.git.commit")
    return facts | versions | ({"git commit": commit} if commit else {})


def _replay(
    places: Places, record: StudyRecord, *, tested: dict[int, dict[str, float]]
) -> tuple[Command, ...]:
    anew = Command(what="Write this report anew", text=places.command("report", record.name))
    if record.spec.compare is not None:
        return (anew,)
    all_of_them = Command(
        what="List every trial", text=places.command("status", record.name, "--all")
    )
    dashboard = Command(
        what="Look at every trial in Optuna Dashboard",
        text=places.command("dashboard", record.name),
    )
    trial = record.winner.trial if record.winner else None
    if trial is None:
        return (anew, all_of_them, dashboard)
    replay = Command(
        what=f"Train trial {trial.number}, the best one, again from its recorded plan and compare",
        text=places.command("replay", record.name, "--trial", str(trial.number)),
    )
    register = Command(
        what="Test the winner once and put it into the model registry",
        text=places.command("register", record.name),
    )
    return (replay, anew, all_of_them, dashboard, *([] if tested else [register]))


def _study_file(spec: StudySpec) -> str:
    """The resolved settings as a study file; the paper's tables are no settings.

    The budget of a search is scaled already.
    """
    left_out = {"reference", *(SEARCHING if spec.compare else ("scale", "analyses"))}
    settings = spec.model_dump(mode="json", exclude_none=True, exclude=left_out)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
