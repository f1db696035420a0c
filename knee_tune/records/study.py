"""What a study has found out, as the reporting side reads it (never Optuna)."""

from collections import Counter, defaultdict
from statistics import fmean, stdev
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from knee_tune.config.recipe import Direction, Spec
from knee_tune.config.study import StudySpec
from knee_tune.records.findings import AtPoint, Audit, AuditReport, Confirmation, Confirmed
from knee_tune.records.shown import counted, fresh_seeds
from knee_tune.records.values import Point, RunRecord

MANY_MORE = 5
"""Rows that a table is not cut short for: a sentence would take their place."""


class TrialRecord(RunRecord, AtPoint):
    """One trial: a point of the search space.

    ``value``, ``metrics`` and ``curve`` are means over its replicates (at a step, over those that
    have reached it); steps are counted over all of them. ``seed`` is that of the first.
    """

    number: int = Field(ge=0)
    key: str = Field(
        default="", description="names its checkpoints and its MLflow run, also after a retry"
    )
    driver: str = Field(default="", description="host and process that drives it, or last did")
    progress: float = Field(default=0, ge=0, description="share of its budget that it reported of")
    spread: float | None = Field(
        default=None, description="sample standard deviation of the replicates' values"
    )
    steps_recorded: int = Field(
        default=0, ge=0, description="of those reused: answered by the record of the same run"
    )
    steps_pruned: int = Field(
        default=0, ge=0, description="of the budget, never reached: pruned or diverged"
    )
    run_id: str | None = Field(default=None, description="MLflow run")
    run_url: str | None = None
    replicates: tuple[RunRecord, ...] = Field(
        default=(), description="those that were begun, in order; the first has the study's seed"
    )

    @property
    def kept_metrics(self) -> dict[str, float]:
        """Of the run whose weights are kept, the first replicate's."""
        return self.replicates[0].metrics if self.replicates else self.metrics


class Winner(AtPoint):
    """The setting to use: what won a race or was confirmed, otherwise the best of the search."""

    value: float | None = Field(
        description="the study's metric: over the fresh seeds that decided, otherwise its trial's"
    )
    spread: float | None = Field(description="standard deviation of the values it is a mean of")
    seeds: int | None = Field(description="fresh random seeds that decided; None: none did")
    confirmed: Confirmed = Field(description="by fresh seeds")
    trial: TrialRecord | None = Field(
        description="complete, at this point; None: fresh seeds alone trained it to its end"
    )

    @property
    def evidence(self) -> str:
        """Where its value is from: ``over 5 fresh seeds, trial 3``."""
        trial = "no complete trial" if self.trial is None else f"trial {self.trial.number}"
        return trial if self.seeds is None else f"over {fresh_seeds(self.seeds)}, {trial}"


class BaselineRecord(RunRecord):
    """A schedule other than Knee, trained outside the search to compare with.

    It is kept, and reported, with the names that a trial's steps have.
    """

    schedule: str
    seed_lr: float

    @model_validator(mode="before")
    @classmethod
    def _from_kept(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "steps" in given:
            return given
        count = {name: given.get(f"steps_{name}", 0) for name in ("trained", "reused")}
        fields = {n: value for n, value in given.items() if not n.startswith(("steps_", "run_"))}
        return fields | {"steps": count, "budget": given.get("steps_budget", 0)}

    @model_serializer(mode="wrap")
    def _as_kept(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        del fields["steps"], fields["budget"], fields["answered"]
        return fields | {
            "steps_trained": self.steps.trained,
            "steps_reused": self.steps.reused,
            "steps_recorded": 0,
            "steps_pruned": 0,
            "steps_budget": self.budget,
            "run_id": None,
            "run_url": None,
        }


class ComparedRun(RunRecord):
    """One row of a table that is trained instead of a search, with one random seed."""

    row: int = Field(ge=0, description="its place in the study's ``compare.rows``")


class Counts(Spec):
    """Trials by state. Those that wait in the queue are not counted."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0


class Steps(Spec):
    """What the study cost, and what it would have cost.

    ``trained`` are all steps that were trained, those of failed trials too; the others are of
    finished (complete or pruned) trials. Without crashes, trained + reused + pruned = independent.
    """

    trained: int
    independent: int = Field(description="had every finished trial been trained alone, to its end")
    reused: int = Field(description="from trunks, or from the records of the same runs")
    pruned: int = Field(description="that pruned or diverged trials had left of their budgets")
    recorded: int = Field(description="of those reused: from records")

    @property
    def words(self) -> list[str]:
        """What the study cost and where it saved, a line each; none before a trial has finished."""
        if not self.independent:
            return []
        share = self.trained / self.independent
        sources = {
            "from trunks (an explore phase that trials share is trained once)": (
                self.reused - self.recorded
            ),
            "from records (the same run was trained before)": self.recorded,
            "by pruning (trials that were ended early)": self.pruned,
        }
        saved = [f"{count:,} {source}" for source, count in sources.items() if count]
        lost = self.trained + self.reused + self.pruned - self.independent
        lines = {
            f"steps trained: {self.trained:,} of {self.independent:,} that independent trials "
            f"would take ({share:.0%})": True,
            f"steps saved: {', '.join(saved)}": bool(saved),
            f"steps of trials that failed, went back or still run: {lost:,}": lost > 0,
        }
        return [line for line, holds in lines.items() if holds]


class EarlierPoint(Spec):
    """What is kept of one trial of an earlier study."""

    params: dict[str, Any]
    value: float = Field(description="pruned ones have that of the worst tenth")


class EarlierStudy(Spec):
    """What a search knew of an earlier study when it was made."""

    study: str
    seed_lr: float = Field(gt=0, description="of its best trial")
    points: tuple[EarlierPoint, ...]

    @property
    def words(self) -> str:
        """``starts from study digits-10: best seed LR 0.03, 12 points``."""
        points = f"{len(self.points)} point{'s' if len(self.points) > 1 else ''}"
        return f"starts from study {self.study}: best seed LR {self.seed_lr:g}, {points}"


class StudyRecord(Spec):
    """A study and its trials. A trial that was taken up again appears once, as it is now."""

    name: str
    task: str
    metric: str = Field(description="what the study optimises, with its split, as in valid_ppl")
    direction: Direction
    trials: tuple[TrialRecord, ...] = ()
    spec: StudySpec
    baselines: tuple[BaselineRecord, ...] = ()
    compared: tuple[ComparedRun, ...] = Field(
        default=(), description="runs of the rows of ``spec.compare``, by row and seed"
    )
    confirmation: Confirmation | None = Field(default=None, description="the newest one")
    earlier: EarlierStudy | None = Field(default=None, description="that its search starts from")
    audit: Audit = Field(default=Audit(), description="pruned trials trained to their end")
    percent: tuple[str, ...] = Field(
        default=(), description="metrics measured in percent, without their split"
    )
    measures: dict[str, str] = Field(
        default_factory=dict, description="how metrics (without their split) are measured"
    )

    def in_percent(self, metric: str) -> bool:
        """Whether a metric, named with its split, lies between 0 and 100."""
        return metric.partition("_")[2] in self.percent

    @property
    def counts(self) -> Counts:
        """How many trials are in which state."""
        counter = Counter[str](trial.state for trial in self.trials)
        return Counts(**{state: counter[state] for state in Counts.model_fields})

    @property
    def run_counts(self) -> Counts:
        """Runs of a comparison by state; those that diverged are counted as pruned."""
        counter = Counter[str](run.state for run in self.compared)
        return Counts(**{state: counter[state] for state in Counts.model_fields})

    @property
    def codes(self) -> dict[str, str]:
        """What each code trained, by its fingerprint: finished trials; runs of a comparison."""
        trials, runs = defaultdict[str, list[int]](list), Counter[str]()
        for trial in self.trials:
            if trial.state in ("complete", "pruned"):
                trials[trial.code].append(trial.number)
        runs.update(run.code for run in self.compared if run.state != "failed")
        return {code: counted("trial", numbers) for code, numbers in trials.items()} | {
            code: f"{count} run{'s' if count > 1 else ''}" for code, count in runs.items()
        }

    def by_other_code(self, code: str) -> str:
        """What of it was not trained by that code, as a sentence; empty if all of it was."""
        others = {name: what for name, what in self.codes.items() if name != code}
        if not others:
            return ""
        shown = " and ".join(others.values())
        verb = "was" if len(others) == 1 and shown.startswith(("trial ", "1 run")) else "were"
        names = ", ".join(name or "not noted" for name in others)
        return (
            f"{shown} {verb} trained by other code or libraries (fingerprint {names}, now {code})"
        )

    @property
    def best(self) -> TrialRecord | None:
        """The search's best complete trial, the earliest of equals; None if there is none.

        What people are told to use is the :attr:`winner`.
        """
        return min(self._complete, key=self._place, default=None)

    @property
    def ranked(self) -> tuple[TrialRecord, ...]:
        """The complete trials, the best value first, the earliest of equals."""
        return tuple(sorted(self._complete, key=self._place))

    @property
    def _complete(self) -> list[TrialRecord]:
        return [
            trial for trial in self.trials if trial.state == "complete" and trial.value is not None
        ]

    def _place(self, trial: TrialRecord) -> tuple[float, int]:
        assert trial.value is not None, "it is complete"
        return trial.value if self.direction == "minimize" else -trial.value, trial.number

    def shown(self, *, best: int, newest: int) -> tuple[TrialRecord, ...]:
        """The best and the newest trials by number; all if there are not many more than those."""
        if len(self.trials) <= best + newest + MANY_MORE:
            return self.trials
        numbers = {trial.number for trial in (*self.ranked[:best], *self.trials[-newest:])}
        if (winner := self.winner) is not None and winner.trial is not None:
            numbers.add(winner.trial.number)  # fresh seeds may have confirmed another one
        return tuple(trial for trial in self.trials if trial.number in numbers)

    @property
    def winner(self) -> Winner | None:
        """What every command, page and record names as the setting to use.

        It is what has won a race or what fresh seeds have confirmed, otherwise the best trial of
        the search; None as long as no trial is complete. A confirmation counts as long as it tried
        what is the best trial now: a search that went on may have found another.
        """
        best, confirmation = self.best, self.confirmation
        if best is None:
            return None
        chosen = confirmation.chosen if confirmation else None
        if confirmation is None or chosen is None or not self._counts(confirmation, best):
            return Winner(
                **best.coordinates,
                value=best.value,
                spread=best.spread,
                seeds=None,
                confirmed=self.confirmed(best),
                trial=best,
            )
        return Winner(
            **chosen.coordinates,
            value=fmean(chosen.values),
            spread=stdev(chosen.values) if len(chosen.values) > 1 else None,
            seeds=len(chosen.values),
            confirmed=confirmation.says(chosen.point),
            trial=next((each for each in self.ranked if each.point == chosen.point), None),
        )

    def _counts(self, confirmation: Confirmation, best: TrialRecord) -> bool:
        """Whether it has tried what is the best trial now; a race chose among all there were."""
        return confirmation.race is not None or confirmation.says(best.point) != "not tried"

    def confirmed(self, trial: TrialRecord) -> Confirmed:
        """Whether fresh seeds have confirmed a trial's point."""
        return self.confirmation.says(trial.point) if self.confirmation else "not tried"

    @property
    def steps(self) -> Steps:
        """Steps trained, and steps that independent unpruned trials would have taken."""
        trials = [trial for trial in self.trials if trial.state in ("complete", "pruned")]
        rows = [run for run in self.compared if run.state != "failed"]
        return Steps(
            trained=sum(run.steps.trained for run in (*self.trials, *self.compared)),
            independent=sum(run.budget for run in (*trials, *rows)),
            reused=sum(run.steps.reused for run in (*trials, *rows)),
            pruned=sum(trial.steps_pruned for trial in trials)
            + sum(run.budget - run.steps.reached for run in rows),
            recorded=sum(trial.steps_recorded for trial in trials)
            + sum(run.steps.reused for run in rows if run.answered),
        )

    @property
    def seconds(self) -> float:
        """Time during which trials were trained, whatever commands did it; pauses do not count.

        In a comparison, its runs.
        """
        spans = (
            (run.started, run.started + run.seconds)
            for run in (*self.trials, *self.compared)
            if run.started is not None and run.seconds is not None
        )
        total, reached = 0.0, float("-inf")
        for start, end in sorted(spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total

    @property
    def pruned_trials(self) -> tuple[TrialRecord, ...]:
        """The trials that pruning ended, one of each point; those that diverged ended themselves.

        Not among them: points that another trial has completed.
        """
        known = {trial.point for trial in self.ranked}
        ended: dict[Point, TrialRecord] = {}
        for trial in self.trials:
            if trial.state == "pruned" and trial.point not in known:
                ended.setdefault(trial.point, trial)
        return tuple(trial for trial in ended.values() if not trial.reason.startswith("diverged"))

    @property
    def audit_report(self) -> AuditReport | None:
        """What the audit says beside the trials there are now; None without one."""
        if not self.audit.trials or not self.ranked:
            return None
        best = {trial.point: trial.value for trial in reversed(self.ranked)}
        return self.audit.report(
            [value for value in best.values() if value is not None],
            direction=self.direction,
            pruned=len(self.pruned_trials),
            steps_saved=sum(trial.steps_pruned for trial in self.pruned_trials),
        )

    def audit_as_json(self) -> dict[str, Any] | None:
        """The object that ``audit --json`` prints."""
        report = self.audit_report
        if report is None:
            return None
        return {"study": self.name, "metric": self.metric, "best": self.best_as_json()} | {
            **report.model_dump()
        }

    def best_as_json(self) -> dict[str, Any] | None:
        """The winner as ``status --json`` and ``best --json`` print it."""
        winner = self.winner
        if winner is None:
            return None
        return {
            "trial": winner.trial.number if winner.trial else None,
            "seed_lr": winner.seed_lr,
            "explore_fraction": winner.explore_fraction,
            **({"decay": winner.decay} if winner.decay else {}),
            "value": winner.value,
            "metric": self.metric,
            "confirmed": winner.confirmed,
        }

    def status_as_json(self) -> dict[str, Any]:
        """The object that ``status --json`` prints; of a comparison, with its ``runs``."""
        runs = {"runs": self.run_counts.model_dump()} if self.spec.compare else {}
        return {
            "study": self.name,
            "counts": self.counts.model_dump(),
            **runs,
            **({"from": self.earlier.model_dump()} if self.earlier else {}),
            "best": self.best_as_json(),
            "steps": self.steps.model_dump(),
            "audit": self.audit_report.model_dump() if self.audit_report else None,
        }
