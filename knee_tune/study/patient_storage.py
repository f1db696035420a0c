"""Optuna's storage on a database that may go away: every call waits for it, and none acts twice."""

import copy
import functools
import json
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError

from knee_tune.databases import is_outage
from knee_tune.errors import UserError, disk_trouble
from knee_tune.study.patience import Patience

_distribution = lru_cache(maxsize=1024)(json_to_distribution)
"""There are as many different ones as there were search spaces; Optuna parses two per trial."""


class QuickStorage(RDBStorage):
    """Optuna's storage, whose first read of a study makes no object of every row.

    A study of 3,000 trials has 80,000 rows, and mapping them is most of what ``status`` takes.
    """

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        if states is not None or trial_id_greater_than > -1:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        with self.engine.connect() as connection:
            trials = models.TrialModel.__table__
            of_study = sqlalchemy.select(trials).where(trials.c.study_id == study_id)
            found = connection.execute(of_study.order_by(trials.c.trial_id)).all()
            details = [
                _by_trial(connection, model, study_id)
                for model in (
                    models.TrialParamModel,
                    models.TrialValueModel,
                    models.TrialUserAttributeModel,
                    models.TrialSystemAttributeModel,
                    models.TrialIntermediateValueModel,
                )
            ]
        if not found:  # Optuna's own says what is not there
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        return [_trial(row, *(each.get(row.trial_id, []) for each in details)) for row in found]


Rows = list[sqlalchemy.Row[Any]]


def _by_trial(
    connection: sqlalchemy.Connection, model: type[models.BaseModel], study_id: int
) -> dict[int, Rows]:
    """The rows of a table of details, by the trial of the study that they belong to."""
    table, trials = model.__table__, models.TrialModel.__table__
    query = (
        sqlalchemy.select(table)
        .join(trials, table.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id)
        .order_by(*table.primary_key.columns)
    )
    rows = defaultdict[int, Rows](list)
    for row in connection.execute(query):
        rows[row.trial_id].append(row)
    return rows


def _trial(
    row: sqlalchemy.Row[Any],
    params: Rows,
    values: Rows,
    user_attrs: Rows,
    system_attrs: Rows,
    intermediate_values: Rows,
) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {
        each.param_name: _distribution(each.distribution_json) for each in params
    }
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=[
            models.TrialValueModel.stored_repr_to_value(each.value, each.value_type)
            for each in sorted(values, key=lambda each: each.objective)
        ]
        or None,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params={
            each.param_name: distributions[each.param_name].to_external_repr(each.param_value)
            for each in params
        },
        distributions=distributions,
        user_attrs={each.key: json.loads(each.value_json) for each in user_attrs},
        system_attrs={each.key: json.loads(each.value_json) for each in system_attrs},
        intermediate_values={
            each.step: models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(
                each.intermediate_value, each.intermediate_value_type
            )
            for each in intermediate_values
        },
        trial_id=row.trial_id,
    )


P = ParamSpec("P")

T = TypeVar("T")

NONCE = "knee:nonce"
"""System attribute of what a call made or changed: a random number, written in the same
transaction. A call whose commit got through while the answer got lost finds its own."""

UPTIME = sqlalchemy.text("SELECT extract(epoch FROM now() - pg_postmaster_start_time())")
"""Seconds since PostgreSQL was started."""


def _patiently(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate["PatientStorage", P], T]:
    """A method that does no harm when it is done twice."""

    @functools.wraps(method)
    def outlasting(self: "PatientStorage", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.patience.outlast(lambda: method(self, *args, **kwargs))

    return outlasting


class PatientStorage(QuickStorage):
    """A storage that waits for its database, as ``patience`` has it.

    What reads, and what writes the same row again, is repeated as it is. What would make a second
    study or trial, or take its own change for another driver's, leaves a ``NONCE`` to look for.
    (Deleting a study is not repeated: a person does that, in Optuna Dashboard.)
    """

    def __init__(self, url: str, *, patience: Patience, **options: Any) -> None:
        self.patience = patience
        super().__init__(url, **options)

    get_all_studies = _patiently(RDBStorage.get_all_studies)
    get_study_id_from_name = _patiently(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = _patiently(RDBStorage.get_study_name_from_id)
    get_study_directions = _patiently(RDBStorage.get_study_directions)
    get_study_user_attrs = _patiently(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = _patiently(RDBStorage.get_study_system_attrs)
    set_study_user_attr = _patiently(RDBStorage.set_study_user_attr)
    set_study_system_attr = _patiently(RDBStorage.set_study_system_attr)
    get_trial = _patiently(RDBStorage.get_trial)
    get_trial_id_from_study_id_trial_number = _patiently(
        RDBStorage.get_trial_id_from_study_id_trial_number
    )
    get_trial_param = _patiently(RDBStorage.get_trial_param)
    get_trial_user_attrs = _patiently(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = _patiently(RDBStorage.get_trial_system_attrs)
    set_trial_intermediate_value = _patiently(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _patiently(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _patiently(RDBStorage.set_trial_system_attr)
    _set_trial_param = _patiently(RDBStorage._set_trial_param)
    _get_trials = _patiently(QuickStorage._get_trials)
    _get_best_trial_id = _patiently(RDBStorage._get_best_trial_id)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """See RDBStorage; DuplicatedStudyError only if the study is another driver's."""
        name = study_name or f"no-name-{uuid.uuid4()}"
        nonce = uuid.uuid4().hex

        def create() -> int:
            try:
                with _create_scoped_session(self.scoped_session) as session:
                    study = models.StudyModel(
                        study_name=name,
                        directions=[
                            models.StudyDirectionModel(objective=objective, direction=direction)
                            for objective, direction in enumerate(directions)
                        ],
                    )
                    session.add(study)
                    session.flush()
                    session.add(
                        models.StudySystemAttributeModel(
                            study_id=study.study_id, key=NONCE, value_json=f'"{nonce}"'
                        )
                    )
                    return int(study.study_id)
            except IntegrityError:
                study_id = self.get_study_id_from_name(name)
                if self.get_study_system_attrs(study_id).get(NONCE) == nonce:
                    return study_id
                raise DuplicatedStudyError(f"there is a study {name!r} already") from None

        return self.patience.outlast(create)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See RDBStorage."""
        return self._create_new_trial(study_id, template_trial)._trial_id

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        """Create it once, unlike RDBStorage, which repeats it five times, whatever got through."""
        nonce = uuid.uuid4().hex
        trial = copy.deepcopy(template_trial) or create_trial(state=TrialState.RUNNING)
        trial.system_attrs = {**trial.system_attrs, NONCE: nonce}
        sent = False

        def create() -> FrozenTrial:
            nonlocal sent
            with _create_scoped_session(self.scoped_session) as session:
                # Waits for an attempt that is still being committed, too.
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                if sent and (made := self._made(study_id, nonce, session)) is not None:
                    return made
                sent = True
                row = self._get_prepared_new_trial(study_id, trial, session)
                trial.number, trial._trial_id = int(row.number), int(row.trial_id)
                return trial

        return self.patience.outlast(create)

    def _made(
        self, study_id: int, nonce: str, session: "sqlalchemy.orm.Session"
    ) -> FrozenTrial | None:
        attribute = models.TrialSystemAttributeModel
        row = (
            session.query(models.TrialModel)
            .join(attribute)
            .filter(
                models.TrialModel.study_id == study_id,
                attribute.key == NONCE,
                attribute.value_json == f'"{nonce}"',
            )
            .first()
        )
        return None if row is None else self._build_frozen_trial_from_trial_model(row)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """See RDBStorage; False and UpdateFinishedTrialError only if another driver was quicker."""
        nonce = uuid.uuid4().hex
        before: str | None = None
        sent = False

        def change() -> bool:
            nonlocal before, sent
            with _create_scoped_session(self.scoped_session) as session:
                row = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                was, last = cast("TrialState", row.state), self._changed_by(row, session)
                # Who waits in the queue may run by now: whoever took it found our change.
                if last == nonce or (sent and last != before and state == TrialState.WAITING):
                    return True
                self.check_trial_is_updatable(trial_id, was)
                if state == TrialState.RUNNING and was != TrialState.WAITING:
                    return False
                before, sent = last, True
                self._set_trial_attr_without_commit(
                    session, models.TrialSystemAttributeModel, trial_id, NONCE, nonce
                )
                for objective, value in enumerate(values or ()):
                    self._set_trial_value_without_commit(session, row, objective, value)
                row.state = state
                if state == TrialState.RUNNING:
                    row.datetime_start = datetime.now()
                if state.is_finished():
                    row.datetime_complete = datetime.now()
            return True

        try:
            return self.patience.outlast(change)
        except IntegrityError:  # two at once, where rows cannot be locked
            return False

    def _changed_by(
        self, row: "models.TrialModel", session: "sqlalchemy.orm.Session"
    ) -> str | None:
        attribute = models.TrialSystemAttributeModel.find_by_trial_and_key(row, NONCE, session)
        return None if attribute is None else str(attribute.value_json).strip('"')

    def record_heartbeat(self, trial_id: int) -> None:
        """Beat once. A beat that is missed ends nothing, also not the thread: another follows.

        Nor does a disk that is full, or a file that may not be written, of which the next call of
        the driver's speaks.
        """
        if self.patience.away_now:
            return  # a batch beats for hundreds of trials, and each attempt may take ten seconds
        try:
            self.patience.attempt(lambda: RDBStorage.record_heartbeat(self, trial_id))
        except UserError:
            pass
        except Exception as error:
            if not (is_outage(error) or disk_trouble(error)):
                raise

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """None after an outage, until every driver had the time to beat again."""
        stale = self.patience.outlast(lambda: RDBStorage._get_stale_trial_ids(self, study_id))
        assert self.grace_period is not None
        if stale and self.patience.outlast(self._uptime) < self.grace_period:
            return []  # an outage before this process began
        return [] if self.patience.away_within(self.grace_period) else stale

    def _uptime(self) -> float:
        """Seconds since the server was started, where it says so."""
        if self.engine.dialect.name != "postgresql":
            return math.inf
        with self.engine.connect() as connection:
            return float(connection.scalar(UPTIME))
