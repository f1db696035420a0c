"""Optuna's database, read in five plain queries where a whole study is wanted at once."""

import json
from collections import defaultdict
from collections.abc import Container
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

_distribution = lru_cache(maxsize=1024)(json_to_distribution)
"""There are as many different ones as there were search spaces; Optuna parses two per trial."""


class QuickStorage(RDBStorage):
    """As Optuna's own, but the first read of a study makes no object of every row.

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
