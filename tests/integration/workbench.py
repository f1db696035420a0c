"""One study to be driven in a folder, ranks replaced by this process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.pruners import NopPruner
from optuna.storages import RDBStorage

from knee_tune.commands.opened import resolve_asked
from knee_tune.plans.plan import Replica, TaskFacts, TaskOrder, TrainPlan
from knee_tune.plans.planner import on_trunk, train_plan
from knee_tune.records.study import StudyRecord, TrialRecord
from knee_tune.records.values import Point
from knee_tune.runs.trainer import Trainer
from knee_tune.runs.trunks import TrunkStore
from knee_tune.schedules import Decay, Knee, Phased
from knee_tune.study.driver import Driver
from knee_tune.study.events import Origin
from knee_tune.study.locks import asking_lock
from knee_tune.study.patience import patience_with
from knee_tune.study.recovery import stale_trial_callback
from knee_tune.study.samplers import axes_of, make_sampler
from knee_tune.study.storage import open_storage
from knee_tune.study.study import open_study, study_record
from knee_tune.study.trial import Search
from knee_tune.training import loop
from knee_tune.workers.protocol import GroupRunner, Report
from tests.fake_runner import FakeRunner
from tests.recording import Recording

EPOCHS, STEPS_PER_EPOCH = 3, 50
BUDGET = EPOCHS * STEPS_PER_EPOCH
FACTS = TaskFacts(steps_per_epoch=STEPS_PER_EPOCH, data_fingerprint="", parameters=0, examples={})


class Watching:
    """Remembers how trials ended and the lines it was given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reused: list[tuple[int, int, int, str]] = []
        self.reports: list[tuple[int, int, int]] = []
        self.ends: list[tuple[int, str, str]] = []
        self.batches: list[list[int]] = []
        """The numbers of the trials of every batch."""
        self.batch_steps: list[int] = []

    def trial_started(
        self,
        number: int,
        plan: TrainPlan,
        *,
        explore_fraction: float,
        decay: Decay | None = None,
        replicates: int,
    ) -> None:
        """Not of interest."""

    def trial_reused(self, number: int, step: int, *, replicate: int, origin: Origin) -> None:
        self.reused.append((number, replicate, step, origin))

    def trial_progressed(self, number: int, step: int) -> None:
        """Not of interest."""

    def trial_reported(self, number: int, report: Report, *, replicate: int) -> None:
        self.reports.append((number, replicate, report.step))

    def trial_finished(self, number: int, end: str, *, value: float | None, reason: str) -> None:
        self.ends.append((number, end, reason))

    def batch_started(self, points: Mapping[int, Point], plan: TrainPlan) -> None:
        self.batches.append([*points])

    def batch_progressed(self, step: int) -> None:
        """Not of interest."""

    def batch_reported(self, report: Report) -> None:
        self.batch_steps.append(report.step)

    def line(self, text: str) -> None:
        self.lines.append(text)


class Workbench:
    """One study of digits in a folder, to be driven again and again."""

    def __init__(
        self,
        home: Path,
        *,
        trunks: bool = False,
        epochs: int = EPOCHS,
        fused: bool = False,
        batched: bool = False,
        **request: Any,
    ) -> None:
        self.fused, self.batched = fused, batched
        self.code = ""
        """Fingerprint of the code that trains."""
        self.names_have_code = False
        """Whether it is a part of the names of checkpoint folders, as it is outside tests."""
        self.home, self.recording, self.watching = home, Recording(), Watching()
        (home / "logs").mkdir(exist_ok=True)
        self.trunks = TrunkStore(home / "trunks", limit=10**9) if trunks else None
        self.after: list[TrialRecord] = []
        spec = resolve_asked(
            task="digits",
            name="it",
            settings=(f"recipe.epochs={epochs}", *request.pop("settings", ())),
            **{"sampler": "random", **request},
        )
        self.spec, self.recipe = spec, spec.typed_recipe
        self.storage_url = f"sqlite:///{home}/optuna.db"
        self.storage: RDBStorage = open_storage(
            self.storage_url, on_stale=stale_trial_callback(self.recording)
        )
        self.axes = axes_of(spec)
        self.study = open_study(self.storage, spec, data_fingerprint="data")
        self.study.sampler = make_sampler(spec.sampler, seed=1, axes=self.axes)
        self.study.pruner = NopPruner()

    def drive(
        self, runner: FakeRunner | None = None, *, trials: int | None, slots: int = 1
    ) -> FakeRunner:
        runner = runner or FakeRunner()
        self.driver(runner, slots=slots).run(trials=trials)
        return runner

    def driver(self, runner: GroupRunner, *, slots: int = 1) -> Driver:
        return Driver(
            Search(
                study=self.study,
                spec=self.spec,
                facts=FACTS.model_copy(update={"code": self.code}),
                axes=self.axes,
                plan=self._plan,
                fused=self.fused or self.batched,
                batched=self.batched,
                asking=asking_lock(self.storage_url, study="it"),
            ),
            trainer=Trainer(runner, trunks=self.trunks),
            slots=slots,
            tracker=self.recording,
            watcher=self.watching,
            after_trial=self.after.append,
            on_interrupt=patience_with(self.storage_url).interrupt,
        )

    def _plan(
        self,
        schedule: Knee | Phased,
        *,
        log_key: str,
        seed: int,
        slot: int,
        replicas: Sequence[Replica] = (),
    ) -> TrainPlan:
        key = log_key.partition("-seed-")[0]
        facts = FACTS.model_copy(update={"code": self.code})
        plan = train_plan(
            TaskOrder(
                task="digits",
                recipe=self.spec.recipe,
                seed=seed,
                data_dir=self.home,
                log_dir=self.home / "logs" / key,
            ),
            self.recipe,
            facts,
            schedule=schedule,
            replicas=replicas,
            checkpoint_dir=self.home / f"{key}-{seed}{self.code if self.names_have_code else ''}",
        )
        if self.trunks is None:
            return plan
        fractions = self.spec.explore_fractions
        return on_trunk(
            plan, self.recipe, facts, trunks=self.trunks.root, explore_fractions=fractions
        )

    @property
    def record(self) -> StudyRecord:
        return study_record(self.study)

    @property
    def states(self) -> list[str]:
        return [trial.state for trial in self.record.trials]


@contextmanager
def training_as_a_rank_does(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, but a checkpoint at every evaluation, which trials of seconds do not get."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
