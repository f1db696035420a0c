"""An Optuna study and a loop of one's own: `TrunkCache`, and the example that uses it."""

import multiprocessing
import runpy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch

import knee_tune
from knee_tune.plans.plan import checkpoint_path
from knee_tune.pruners import KneePruner
from knee_tune.schedules import Knee
from knee_tune.study.storage import quiet_optuna

KEY = {"width": 64, "seed": 1}


def knee(*, seed_lr: float = 0.1, explore: int = 50, total: int = 100, warmup: int = 0) -> Knee:
    return Knee(seed_lr=seed_lr, total_steps=total, explore_steps=explore, warmup_steps=warmup)


def state(value: float = 0.0) -> dict[str, object]:
    return {"model": {"weight": torch.full((25,), value)}, "reported": {10: value}}


@pytest.fixture
def cache(tmp_path: Path) -> knee_tune.TrunkCache:
    return knee_tune.TrunkCache(tmp_path / "deep" / "trunks")


def nearest(cache: knee_tune.TrunkCache, schedule: Knee, **more: object) -> int | None:
    """The step of what is found."""
    found = cache.nearest(schedule, **({"key": KEY} | more))  # type: ignore[arg-type]
    return found.step if found else None


def test_what_was_kept_serves_every_schedule_that_begins_alike(
    cache: knee_tune.TrunkCache,
) -> None:
    for step in (10, 30, 50):
        cache.keep(knee(), step, state(step), key=KEY)
    assert nearest(cache, knee(explore=90)) == 50
    assert nearest(cache, knee(explore=90), at_most=49) == 30
    assert nearest(cache, knee(explore=40, total=500)) == 30, "never beyond its own knee"
    assert nearest(cache, knee(explore=9)) is None
    assert nearest(cache, knee(seed_lr=0.2)) is None
    assert nearest(cache, knee(warmup=5, explore=45)) is None
    assert nearest(cache, knee(), key={"seed": 2}) is None
    found = cache.nearest(knee(), key=dict(reversed(KEY.items())))
    assert found is not None
    assert torch.equal(found.state["model"]["weight"], torch.full((25,), 50.0))
    assert found.state["reported"] == {10: 50}


def test_a_decay_and_pickle_are_refused_in_one_line(cache: knee_tune.TrunkCache) -> None:
    with pytest.raises(ValueError, match=r"^step 51: only steps 1..50 of this schedule, before"):
        cache.keep(knee(), 51, state(), key=KEY)
    with pytest.raises(ValueError, match=r"^step 41: only steps 1..40"):
        cache.keep(knee().with_decay_scale(1.2), 41, state(), key=KEY)
    with pytest.raises(ValueError, match=r"^state: sizes\[0\] is a Path of pathlib, which cannot"):
        cache.keep(knee(), 10, {"sizes": [type("Path", (), {"__module__": "pathlib"})()]}, key=KEY)
    with pytest.raises(ValueError, match=r"^key: JSON cannot hold it"):
        cache.nearest(knee(), key={"data": torch.zeros(1)})
    with pytest.raises(ValueError, match="limit must be positive"):
        knee_tune.TrunkCache("trunks", limit=0)


def test_a_damaged_one_is_named_and_bypassed(cache: knee_tune.TrunkCache, tmp_path: Path) -> None:
    cache.keep(knee(), 10, state(), key=KEY)
    cache.keep(knee(), 20, state(), key=KEY)
    (trunk,) = (tmp_path / "deep" / "trunks").glob("own-*/")
    damaged = checkpoint_path(trunk, step=20)
    damaged.joinpath("state.pt").write_bytes(b"?")
    with pytest.warns(UserWarning, match="step-00000020: no good, not started from"):
        assert nearest(cache, knee()) == 10
    assert not damaged.exists()


def test_it_takes_no_more_than_its_limit(cache: knee_tune.TrunkCache, tmp_path: Path) -> None:
    """What is kept lies 10 steps apart, but for the one in between, which is dropped."""
    for step in (10, 20):
        cache.keep(knee(), step, state(), key=KEY)
    folder = tmp_path / "deep" / "trunks"
    taken = sum(path.stat().st_size for path in folder.glob("own-*/step-*/*"))
    small = knee_tune.TrunkCache(folder, limit=taken)
    small.keep(knee(), 14, state(), key=KEY)
    assert nearest(small, knee()) == 20
    assert nearest(small, knee(), at_most=19) == 10


def _work(folder: Path, seed: int) -> None:
    """Keep and load states of few trunks, in a folder that has room for few of them."""
    cache = knee_tune.TrunkCache(folder, limit=20_000)
    for turn in range(30):
        schedule, step = knee(seed_lr=0.1 * (1 + (turn + seed) % 3)), 1 + (7 * turn + seed) % 50
        value = schedule.seed_lr * step
        cache.keep(schedule, step, state(value), key=KEY)
        found = cache.nearest(schedule, key=KEY)
        if found is not None:
            expected = torch.full((25,), schedule.seed_lr * found.step)
            assert torch.equal(found.state["model"]["weight"], expected)


@pytest.mark.filterwarnings("error")
def test_processes_share_it(tmp_path: Path) -> None:
    workers = [
        multiprocessing.get_context("fork").Process(target=_work, args=(tmp_path / "trunks", seed))
        for seed in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


@pytest.fixture(scope="module")
def example(repository: Path) -> Iterator[SimpleNamespace]:
    """What the example defines; the threads that it wants are its own."""
    threads = torch.get_num_threads()
    found = runpy.run_path(str(repository / "examples" / "own_optuna" / "objective.py"))
    yield SimpleNamespace(**found)
    torch.set_num_threads(threads)


def test_a_branched_trial_of_the_example_is_the_uninterrupted_one(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.Tensor] = []

    class Watched(example.KneeLR):  # type: ignore[name-defined,misc]
        """Notes the weights at the end."""

        def step(self) -> None:
            super().step()
            if self.last_epoch == example.STEPS:
                params = self.optimizer.param_groups[0]["params"]
                trained.append(torch.cat([each.detach().flatten() for each in params]))

    monkeypatch.setitem(example.objective.__globals__, "KneeLR", Watched)
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    cache = knee_tune.TrunkCache(tmp_path / "trunks")
    with quiet_optuna():
        for fraction in (0.3, 0.7, 0.5, 0.7):
            for shared in (cache, None):
                study.enqueue_trial({"seed_lr": 0.1, "explore_fraction": fraction})
                study.optimize(partial(example.objective, cache=shared), n_trials=1)
    assert [trial.user_attrs["first_step"] for trial in study.trials[::2]] == [1, 91, 151, 211]
    for branched, alone in zip(study.trials[::2], study.trials[1::2], strict=True):
        assert branched.intermediate_values == alone.intermediate_values
        assert branched.value == alone.value
        assert torch.equal(trained[branched.number], trained[alone.number])


def test_its_study_prunes_and_saves_steps(example: SimpleNamespace, tmp_path: Path) -> None:
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=1), pruner=KneePruner(n_startup_trials=3)
    )
    cache = knee_tune.TrunkCache(tmp_path / "trunks")
    with quiet_optuna():
        study.optimize(partial(example.objective, cache=cache), n_trials=12)
    states = [trial.state.name for trial in study.trials]
    assert "PRUNED" in states
    trained = [
        (trial.last_step or 0) + 1 - trial.user_attrs["first_step"] for trial in study.trials
    ]
    assert sum(trained) < 0.8 * 300 * 12
    assert study.best_value < 0.35
