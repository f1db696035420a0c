"""Optuna's storage on a database that may go away: every call waits for it, and none acts twice."""

import copy
import functools
import json
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError

from knee_tune.databases import is_outage
from knee_tune.errors import UserError, disk_trouble
from knee_tune.study.collector import uncollected
from knee_tune.study.patience import Patience

_distribution = lru_cache(maxsize=1024)(json_to_distribution)
"""There are as many different ones as there were search spaces; Optuna parses two per trial."""


class QuickStorage(RDBStorage):
    """Optuna's storage, which makes no object of every row that it reads.

    A study of 10,000 trials has 400,000 rows, and mapping them is most of what ``status`` takes; a
    driver reads all trials that run, of every driver, at each report.
    """

    @uncollected()
    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        older = {each for each in included_trial_ids if each <= trial_id_greater_than}
        if states is not None or len(older) > _MANY:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        trials = models.TrialModel.__table__.c
        wanted = trials.study_id == study_id
        if trial_id_greater_than > -1:
            newer = trials.trial_id > trial_id_greater_than
            wanted &= sqlalchemy.or_(newer, trials.trial_id.in_(older)) if older else newer
        with self.engine.connect() as connection:
            query = sqlalchemy.select(*(trials[column] for column in _OF_A_TRIAL))
            found = connection.execute(query.where(wanted).order_by(trials.trial_id)).all()
            if not found:  # Optuna's own says what is not there
                return super()._get_trials(
                    study_id, None, included_trial_ids, trial_id_greater_than
                )
            details = [
                _by_trial(connection, wanted, model, *columns) for model, *columns in _DETAILS
            ]
        return [_trial(row, *(each.get(row[0], ()) for each in details)) for row in found]


_MANY = 500
"""Trials that run at the same time, up to which a query may name each."""

_OF_A_TRIAL = ("trial_id", "number", "state", "datetime_start", "datetime_complete")

_DETAILS: tuple[tuple[Any, ...], ...] = (
    (models.TrialParamModel, "param_name", "param_value", "distribution_json"),
    (models.TrialValueModel, "objective", "value", "value_type"),
    (models.TrialUserAttributeModel, "key", "value_json"),
    (models.TrialSystemAttributeModel, "key", "value_json"),
    (
        models.TrialIntermediateValueModel,
        *("step", "intermediate_value", "intermediate_value_type"),
    ),
)
"""What else is stored of a trial, and in which columns."""

Rows = Sequence[Sequence[Any]]


def _by_trial(
    connection: sqlalchemy.Connection, wanted: Any, model: Any, *columns: str
) -> dict[int, Rows]:
    """The rows of a table of details, by the trial that they belong to."""
    table, trials = model.__table__, models.TrialModel.__table__
    query = (
        sqlalchemy.select(table.c.trial_id, *(table.c[column] for column in columns))
        .join(trials, table.c.trial_id == trials.c.trial_id)
        .where(wanted)
        .order_by(*table.primary_key.columns)
    )
    rows = defaultdict[int, Any](list)
    for trial, *details in connection.execute(query).all():
        rows[trial].append(details)
    return rows


def _trial(
    row: Sequence[Any],
    params: Rows,
    values: Rows,
    user_attrs: Rows,
    system_attrs: Rows,
    intermediate_values: Rows,
) -> FrozenTrial:
    trial_id, number, state, started, completed = row
    distributions: dict[str, BaseDistribution] = {
        name: _distribution(described) for name, _, described in params
    }
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=[
            models.TrialValueModel.stored_repr_to_value(value, kind)
            for _, value, kind in sorted(values, key=itemgetter(0))
        ]
        or None,
        datetime_start=started,
        datetime_complete=completed,
        params={name: distributions[name].to_external_repr(value) for name, value, _ in params},
        distributions=distributions,
        user_attrs=_attributes(user_attrs),
        system_attrs=_attributes(system_attrs),
        intermediate_values={
            step: value if kind is _FINITE else _intermediate(value, kind)
            for step, value, kind in intermediate_values
        },
        trial_id=trial_id,
    )


_intermediate = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value

_FINITE = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE

_quoted = lru_cache(maxsize=1024)(json.dumps)
"""A name of an attribute: there are few, and every trial has them."""


def _attributes(rows: Rows) -> dict[str, Any]:
    """Attributes by name, all parsed at once, which takes a third of the time."""
    parsed: dict[str, Any] = json.loads(
        "{" + ",".join([f"{_quoted(key)}:{value}" for key, value in rows]) + "}"
    )
    return parsed


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

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set several at once: a trial has a dozen, and a transaction for each takes as long."""

        def write() -> None:
            with _create_scoped_session(self.scoped_session, True) as session:
                for key, value in attributes.items():
                    self._set_trial_attr_without_commit(
                        session, models.TrialUserAttributeModel, trial_id, key, value
                    )

        self.patience.outlast(write)

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


def note_together(trial: Trial, notes: Mapping[str, Any]) -> None:
    """Set user attributes of a running trial, in one transaction where the storage is ours."""
    storage = getattr(trial.storage, "_backend", None)  # below Optuna's cache
    if isinstance(storage, PatientStorage):
        storage.set_trial_user_attrs(trial._trial_id, notes)
        trial._cached_frozen_trial.user_attrs.update(notes)
        return
    for name, value in notes.items():
        trial.set_user_attr(name, value)
