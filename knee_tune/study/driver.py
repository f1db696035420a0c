"""The driver: asks Optuna for trials, has worker groups train them, and tells every one's fate.

It is the only writer of the study and of the tracking. Whatever happens to a rank, its trial is
told once: complete, pruned or failed, with the reason.
"""

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from knee_tune.errors import HomeGoneError
from knee_tune.records.study import TrialRecord
from knee_tune.records.values import RunEnd
from knee_tune.runs.slots import Slots
from knee_tune.runs.trainer import Trainer, error_of
from knee_tune.study.batches import BatchTraining, take_batch
from knee_tune.study.dashboard import record_end, write_trial_note
from knee_tune.study.events import (
    INTERRUPTED,
    NO_FAULT_OF_ITS_OWN,
    TAKEN_OVER,
    Ending,
    Recorder,
    RefusedError,
    Watcher,
)
from knee_tune.study.flat import flat_by
from knee_tune.study.locks import retaken
from knee_tune.study.patience import StorageGoneError
from knee_tune.study.recovery import current, give_back, params_of, put_back, recover
from knee_tune.study.samplers import reaching, wanted
from knee_tune.study.storage import quiet_optuna
from knee_tune.study.study import TOLD, trial_record
from knee_tune.study.trial import FusedTrial, Search, TrialRun
from knee_tune.study.trial_trainer import train_trial
from knee_tune.workers.protocol import Failure

FAILURES_IN_A_ROW = 3
"""Failed trials after which the driver stops: the next one would most likely fail too."""

MANY = 8
"""Trials of a killed driver up to which each is worth a line: a batch has hundreds."""


class TrialFailedError(Exception):
    """A trial could not be trained; the study goes on."""


class _LeftError(BaseException):
    """A trial has no end yet: it is in the queue again, or another driver has it.

    Of any usual exception Optuna tells the trial, and that is its end for good. ``__cause__`` says
    what has happened.
    """


class TurnLostError(Exception):
    """The study got all its trials while the storage was away and this driver asked for one."""


class Driver:
    """Drives one study: ``slots`` trials at a time, each with a worker group of its own."""

    def __init__(
        self,
        search: Search,
        *,
        trainer: Trainer,
        slots: int,
        tracker: Recorder,
        watcher: Watcher,
        after_trial: Callable[[TrialRecord], None],
        on_interrupt: Callable[[], None],
    ) -> None:
        self._search, self._study = search, search.study
        self._trainer, self._slots = trainer, Slots(slots, on_interrupt=on_interrupt)
        self._tracker, self._watcher, self._after_trial = tracker, watcher, after_trial
        self._asking = threading.Lock()
        self._failures_in_a_row = 0

    def run(self, *, trials: int | None, timeout: float | None = None) -> None:
        """Train until the study has ``trials`` trials, or every point of its search space if None.

        It ends as well when no point is left, the search's target is reached or, if that is asked
        for, nothing left is worth its cost, and starts no trial after ``timeout`` seconds.

        Raises KeyboardInterrupt after every running trial was told and put back into the queue,
        UserError or MachineError when trial after trial fails, or when one does for a cause that
        somebody must fix: then it is in the queue again, too.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with quiet_optuna():
            with self._search.asking:
                locked = not isinstance(self._search.asking, nullcontext)
                dead = recover(self._study, self._tracker, locked=locked)
            if len(dead) > MANY:
                self._watcher.line(f"{len(dead)} trials: their driver was killed")
            else:
                for trial in dead:
                    self._watcher.line(f"trial {trial.number}: its driver was killed")
            try:
                self._slots.run(lambda slot: self._drive(slot, trials, deadline))
            finally:
                give_back(self._study, reason=INTERRUPTED)
        known = self._study.get_trials(deepcopy=False)
        target = self._search.spec.target
        if target is not None and (by := reaching(self._study, known, target)):
            self._watcher.line(f"target {target:g} reached: trial {by.number} has {by.value:.6g}")
        elif self._search.spec.stop_when_flat and (flat := flat_by(self._study, self._search.axes)):
            self._watcher.line(flat.words)
        elif not wanted(self._study, self._search.axes, trials=None):
            failed = [each for each in current(known) if each.state == TrialState.FAIL]
            but = f"; {len(failed)} of them failed" if failed else ""
            self._watcher.line(f"every point of the search space was tried{but}")

    def _wants(self, trials: int | None, *, besides: int | None = None) -> bool:
        """Tell whether the study wants another trial."""
        search = self._search
        return wanted(
            self._study,
            search.axes,
            trials=trials,
            target=search.spec.target,
            allowance=search.allowance,
            besides=besides,
        ) and not (search.spec.stop_when_flat and flat_by(self._study, search.axes))

    def _drive(self, slot: int, trials: int | None, deadline: float) -> None:
        """Train one trial after another in a slot until there is nothing left to do.

        A batch takes whatever is left, so there is work for one slot alone.
        """
        if self._search.batched:
            while slot == 0 and time.monotonic() < deadline and self._drive_batch(trials):
                pass
            return
        while time.monotonic() < deadline and self._drive_one(slot, trials):
            pass

    def _drive_one(self, slot: int, trials: int | None) -> bool:
        """Drive one more trial to its end; False if none is wanted.

        One slot asks at a time, until its trial has its parameters: so each one counts, and
        samples beside, the trials of the others.
        """
        with ExitStack() as asking:
            asking.enter_context(self._asking)
            asking.enter_context(self._search.asking)
            if self._slots.stopped or not self._wants(trials):
                return False

            def objective(trial: optuna.Trial) -> float:
                try:
                    self._give_way(trial, trials)
                    kind = FusedTrial if self._search.fused else TrialRun
                    run = kind(trial, self._search, self._tracker)
                    asking.close()
                    return self._objective(run, slot)
                except NO_FAULT_OF_ITS_OWN as why:
                    reason = Ending.of_exception(why).reason
                    try:
                        put_back(self._study, trial._trial_id, reason=reason)
                    except UpdateFinishedTrialError:
                        self._watcher.line(TAKEN_OVER)
                    except (StorageGoneError, StorageInternalError):
                        pass  # whoever goes on finds that its driver is gone
                    except KeyboardInterrupt as interrupt:
                        raise _LeftError from interrupt
                    raise _LeftError from why
                except UpdateFinishedTrialError as why:
                    self._watcher.line(TAKEN_OVER)
                    raise _LeftError from why

            try:
                self._study.optimize(
                    objective,
                    n_trials=1,
                    catch=(TrialFailedError,),
                    callbacks=[lambda study, trial: self._after_trial(trial_record(study, trial))],
                )
            except _LeftError as left:
                match left.__cause__:
                    case RefusedError(error=error):
                        raise error from None
                    case (
                        KeyboardInterrupt()
                        | HomeGoneError()
                        | StorageGoneError()
                        | StorageInternalError() as why
                    ):
                        raise why from None
            except TurnLostError:
                pass
            except UnboundLocalError as error:  # Optuna, where it cannot see how its trial was told
                raise error.__context__ or error from None
        return True

    def _give_way(self, trial: optuna.Trial, trials: int | None) -> None:
        """Raise TurnLostError if our turn to ask was lost, and others took the last trial.

        Nothing is left of a trial without parameters; one from the queue goes back to it.
        """
        if not retaken(self._search.asking):
            return
        if self._wants(trials, besides=trial.number):
            return
        if params_of(self._study.get_trials(deepcopy=False)[trial.number]):
            put_back(self._study, trial._trial_id, reason="")
            raise _LeftError
        raise TurnLostError

    def _drive_batch(self, trials: int | None) -> bool:
        """Drive all trials that are left, or as many as make a batch; False if none is wanted."""
        with self._asking, self._search.asking:
            if not self._wants(trials):
                return False
            batch = take_batch(self._search, self._tracker, slot=0, trials=trials)
        if batch is None:
            return False
        if not batch.trials:
            return True
        training = BatchTraining(
            batch,
            study=self._study,
            trainer=self._trainer,
            watcher=self._watcher,
            raise_if_stopped=self._slots.raise_if_stopped,
            after_trial=self._after_trial,
        )
        try:
            training.run()
        except UpdateFinishedTrialError:
            self._watcher.line(TAKEN_OVER)
        return True

    def _objective(self, run: TrialRun, slot: int) -> float:
        twin = run.finished_twin()
        if twin is not None:
            return self._repeat(run, twin)
        plans = run.plans_for(slot)
        try:
            run.started(plans[0])
            self._watcher.trial_started(
                run.number,
                plans[0],
                explore_fraction=run.explore_fraction,
                decay=run.decay,
                replicates=len(plans),
            )
            ending = train_trial(
                run,
                plans,
                trainer=self._trainer,
                watcher=self._watcher,
                raise_if_stopped=self._slots.raise_if_stopped,
            )
        except BaseException as error:
            record_end(run, Ending.of_exception(error), watcher=self._watcher)
            raise
        record_end(run, ending, watcher=self._watcher)
        if ending.failure is not None:
            raise self._failed(run, ending.failure, task=plans[0].task, reason=ending.reason)
        self._failures_in_a_row = 0
        if TOLD[ending.end] == TrialState.PRUNED:
            raise optuna.TrialPruned(ending.reason)
        return ending.metrics[run.metric]

    def _failed(self, run: TrialRun, failure: Failure, *, task: str, reason: str) -> Exception:
        """The exception by which Optuna, or whoever gave the command, is told of it."""
        study = self._study.study_name
        if failure.for_all:
            said = f"study {study}: trial {run.number}: {reason}"
            return RefusedError(error_of(failure, task=task, said=said))
        self._failures_in_a_row += 1
        if self._failures_in_a_row < FAILURES_IN_A_ROW:
            return TrialFailedError(reason)
        return error_of(
            failure,
            task=task,
            said=f"study {study}: {FAILURES_IN_A_ROW} trials in a row failed, the last one with: "
            f"{reason}; see {run.log_dir}",
        )

    def _repeat(self, run: TrialRun, twin: FrozenTrial) -> float:
        """Repeat the end of the same training, which was done before."""
        reason = f"same as trial {twin.number}"
        run.copy(twin, reason=reason)
        pruned = twin.state == TrialState.PRUNED
        value = None if pruned else twin.value
        ending = Ending(end=RunEnd.PRUNED if pruned else RunEnd.COMPLETE, reason=reason)
        write_trial_note(run, ending)
        self._watcher.trial_finished(run.number, ending.state, value=value, reason=reason)
        if value is None:
            raise optuna.TrialPruned(reason)
        return value
