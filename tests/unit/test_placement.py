"""Which devices a slot gets, and in which arithmetic it trains."""

from pathlib import Path

import pytest
import torch

from knee_tune.commands.home import HeldHome, Home
from knee_tune.commands.workers import GroupOptions, Workers
from knee_tune.config.recipe import ExploreFractionSpace, SearchSpace, SeedLRSpace
from knee_tune.config.study import ResolvedStudy
from knee_tune.errors import UserError
from knee_tune.plans.plan import Placement, TaskFacts
from knee_tune.runs.trainer import Trainer
from knee_tune.tasks.registry import task_entry
from knee_tune.workers import rank
from tests.pretend_ranks import PretendRanks


@pytest.fixture(autouse=True)
def _no_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def placed(options: GroupOptions, *, gpus: int, amp: bool = False) -> list[Placement]:
    """Where every slot of these options trains on a machine with so many GPUs."""
    options.check()
    recipe = task_entry("digits").recipe_type().model_validate({"amp": amp})
    runner = PretendRanks()
    workers = Workers(
        held=HeldHome(home=Home(Path("home")), descriptor=-1),
        spec=ResolvedStudy(
            name="s",
            task="digits",
            preset="p",
            recipe=recipe.model_dump(mode="json"),
            typed_recipe=recipe,
            space=SearchSpace(
                seed_lr=SeedLRSpace(values=(0.1,)),
                explore_fraction=ExploreFractionSpace(values=(0.5,)),
            ),
        ),
        options=options,
        runner=runner,
        trainer=Trainer(runner, trunks=None),
        facts=TaskFacts(
            steps_per_epoch=1, data_fingerprint="d", parameters=1, examples={}, gpus=gpus
        ),
    )
    return [workers.placement(slot) for slot in range(options.slots)]


def devices(options: GroupOptions, *, gpus: int) -> list[str | None]:
    return [each.visible_devices for each in placed(options, gpus=gpus)]


def test_as_many_trials_as_share_a_gpu_have_to_be_asked_for() -> None:
    with pytest.raises(UserError, match=r"`trials_per_gpu` 2: .*add `slots` 2"):
        GroupOptions(trials_per_gpu=2).check()


def test_every_slot_has_gpus_of_its_own() -> None:
    assert devices(GroupOptions(slots=2), gpus=2) == ["0", "1"]
    assert devices(GroupOptions(slots=2, nproc=2), gpus=4) == ["0,1", "2,3"]


def test_small_trials_share_a_gpu() -> None:
    assert devices(GroupOptions(slots=3, trials_per_gpu=3), gpus=1) == ["0", "0", "0"]
    assert devices(GroupOptions(slots=5, trials_per_gpu=2), gpus=3) == ["0", "0", "1", "1", "2"]


def test_only_visible_gpus_are_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert devices(GroupOptions(slots=3, trials_per_gpu=2), gpus=2) == ["5", "5", "7"]


def test_a_cpu_has_no_devices_to_give() -> None:
    assert devices(GroupOptions(slots=2), gpus=0) == [None, None]


def test_too_few_gpus_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"needs 3 GPUs .* has 2; .*`trials_per_gpu`"):
        placed(GroupOptions(slots=5, trials_per_gpu=2, device="cuda"), gpus=2)


def test_ranks_of_a_preset_move_to_the_cpu_where_there_are_too_few_gpus() -> None:
    preset = GroupOptions(nproc=2, nproc_asked=False)
    assert [each.device for each in placed(preset, gpus=1)] == ["cpu"]
    assert [each.device for each in placed(preset, gpus=2)] == ["cuda"]


def test_trials_at_a_time_that_were_asked_for_never_do() -> None:
    with pytest.raises(UserError, match="needs 3 GPUs on this machine, which has 1"):
        placed(GroupOptions(slots=3, nproc_asked=False), gpus=1)
    with pytest.raises(UserError, match="needs 2 GPUs on this machine, which has 1"):
        placed(GroupOptions(slots=4, trials_per_gpu=3, nproc_asked=False), gpus=1)


def test_every_machine_of_a_trial_gives_out_its_own_gpus() -> None:
    spanning = GroupOptions(
        nproc=4, nnodes=2, address="localhost", runner="torchrun", launcher=("srun", "torchrun")
    )
    assert devices(spanning, gpus=2) == [None]


def test_ray_finds_the_gpus_itself() -> None:
    """Those of this machine do not count: a group waits until the cluster has room for it."""
    on_ray = GroupOptions(runner="ray", nproc=4, slots=8)
    assert devices(on_ray, gpus=1) == [None] * 8
    assert {each.device for each in placed(on_ray, gpus=1)} == {"cuda"}
    assert {each.device for each in placed(on_ray, gpus=0)} == {"cpu"}


def test_only_ray_is_told_where_to_place_ranks() -> None:
    for options in ({"strategy": "spread"}, {"ray_address": "auto"}, {"cpus_per_rank": 2.0}):
        with pytest.raises(UserError, match="only `runner` ray"):
            GroupOptions(**options).check()
        GroupOptions(runner="ray", **options).check()


def test_ranks_of_one_trial_never_share_a_gpu() -> None:
    with pytest.raises(UserError, match="`trials_per_gpu` 2: only trials of one rank"):
        placed(GroupOptions(slots=2, nproc=2, trials_per_gpu=2), gpus=2)


def test_there_is_no_gpu_to_share_on_a_cpu() -> None:
    with pytest.raises(UserError, match="`trials_per_gpu` 2: there is no GPU"):
        placed(GroupOptions(slots=2, trials_per_gpu=2, device="cpu"), gpus=2)


@pytest.mark.parametrize(
    ("recipe", "asked", "bf16"),
    [
        (True, None, True),
        (True, False, False),
        (False, None, False),
        (False, True, True),
    ],
)
def test_bf16_is_the_recipes_choice_unless_asked_for(
    recipe: bool, asked: bool | None, bf16: bool
) -> None:
    assert placed(GroupOptions(amp=asked), gpus=1, amp=recipe)[0].amp is bf16


def test_a_cpu_stays_in_float32_whatever_the_recipe_would_like() -> None:
    assert not placed(GroupOptions(), gpus=0, amp=True)[0].amp
    with pytest.raises(UserError, match="`amp`: bf16 training needs a GPU"):
        placed(GroupOptions(amp=True), gpus=0)


def test_a_gpu_without_bf16_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: False)
    rank._check_arithmetic(Placement(device="cuda"))
    with pytest.raises(UserError, match=r"^`amp`: .*with `amp=False`$"):
        rank._check_arithmetic(Placement(device="cuda", amp=True))


def test_compiling_is_said_to_the_ranks() -> None:
    assert placed(GroupOptions(compile=True), gpus=0)[0].compile


@pytest.fixture
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knee_tune.commands.workers.usable_cores", lambda: 2)


@pytest.mark.usefixtures("_two_cores")
@pytest.mark.parametrize(
    ("options", "count"),
    [
        (GroupOptions(nproc=1_000_000, device="cpu"), "1,000,000"),
        (GroupOptions(slots=100_000, device="cpu"), "100,000"),
        (GroupOptions(nproc=13, slots=5, device="cpu"), "65"),
        (GroupOptions(nproc=4, nproc_asked=False, slots=65, device="cpu"), "65"),
        (GroupOptions(nproc=1_000_000, device="cuda"), "1,000,000"),
    ],
)
def test_far_more_processes_than_cores_are_refused(options: GroupOptions, count: str) -> None:
    with pytest.raises(UserError, match=rf": {count} processes .* 2 cores \(64 at most\)"):
        options.check()


@pytest.mark.usefixtures("_two_cores")
@pytest.mark.parametrize(
    "options",
    [
        GroupOptions(nproc=16, slots=4, device="cpu"),
        GroupOptions(nproc=1000, nproc_asked=False, device="cpu"),
        GroupOptions(slots=1000, trials_per_gpu=1000, device="cuda"),
        GroupOptions(
            nproc=1000,
            nnodes=10,
            runner="torchrun",
            launcher=("srun", "torchrun"),
            address="127.0.0.1",
        ),
        GroupOptions.as_placed(Placement(world_size=1000)),
    ],
    ids=["few", "a preset's", "on GPUs", "of several machines", "as recorded"],
)
def test_other_counts_are_left_to_who_asks_for_them(options: GroupOptions) -> None:
    options.check()


def test_many_cores_take_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knee_tune.commands.workers.usable_cores", lambda: 100)
    GroupOptions(nproc=100, slots=4, device="cpu").check()
    with pytest.raises(UserError, match="100 cores"):
        GroupOptions(nproc=401, device="cpu").check()
