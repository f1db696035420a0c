"""What every task promises to the training loop, as tests: for pytest, by those who write a task.

```python
from knee_tune.testing import TaskContract
from my_task import MyTask

class TestMyTask(TaskContract):
    task = MyTask
    recipe = {"batch_size": 12, "width": 8}  # small: a test takes a second
```
"""

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from knee_tune.plans.plan import Placement, TrainPlan
from knee_tune.schedules import Knee
from knee_tune.tasks.base import Task
from knee_tune.tasks.outside import answers, made, recipe_of
from knee_tune.tasks.registry import task_entry
from knee_tune.training.learner import evaluate
from knee_tune.training.single import SingleModel
from knee_tune.workers.group import Group

ALONE = Group()
PAIR = [Group(rank=rank, world_size=2) for rank in range(2)]

Make = Callable[..., Task[Any]]
"""Makes the task anew; keywords change its ``folder``, its ``seed`` and its recipe."""


class TaskContract:
    """Tests of one task; a subclass named ``Test...`` says which, and may overrule the fixtures."""

    task: ClassVar[Any] = None
    """The class, or what ``--task`` takes: a name, ``./my_task.py:MyTask``."""

    recipe: ClassVar[Mapping[str, Any]] = {}
    """Its recipe's settings, for something small."""

    data_dir: ClassVar[Path | None] = None
    """The folder that its data are in, if it reads any; an empty one if None."""

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        """As in a rank on CPU: small models are faster so."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        """What makes the task."""
        data, task = self.data_dir or tmp_path, type(self).task

        def build(*, folder: Path = data, seed: int = 1, **recipe: Any) -> Task[Any]:
            settings = {**self.recipe, **recipe}
            if isinstance(task, str):
                return task_entry(task).build(settings, data_dir=folder, seed=seed)
            return made(task, recipe_of(task).model_validate(settings), data_dir=folder, seed=seed)

        return build

    @pytest.fixture
    def example_ids(self) -> Callable[[Any], list[Any]]:
        """What tells the examples of one micro-batch apart: by default all that is in their row."""
        return rows_of

    @pytest.fixture
    def together(self) -> bool:
        """Whether the shares of all ranks at a step are the batch of a single rank there."""
        return True

    @pytest.fixture
    def built(self, make: Make) -> Task[Any]:
        """The task."""
        return make()

    @pytest.fixture
    def model(self, built: Task[Any]) -> Iterator[nn.Module]:
        """A model as evaluations get it."""
        with torch.no_grad():
            yield model_of(built).eval()

    # Construction

    def test_construction_needs_no_data(self, make: Make, tmp_path: Path) -> None:
        """Commands that only look make a task too."""
        make(folder=tmp_path / "nowhere")
        assert not any(tmp_path.iterdir())

    def test_the_model_follows_from_the_generator(self, built: Task[Any]) -> None:
        """The same random seed, the same weights; another one, others."""
        one, again = model_of(built), model_of(built)
        torch.manual_seed(1)
        other = built.build_model()
        assert same(list(one.parameters()), list(again.parameters()))
        assert not same(list(one.parameters()), list(other.parameters()))

    def test_fingerprint_is_that_of_the_data(self, make: Make) -> None:
        """It is neither that of the random seed nor of the moment."""
        fingerprint, examples = make().describe()
        assert make(seed=2).describe() == (fingerprint, examples)
        assert {"train", "valid"} <= examples.keys()
        assert min(examples.values()) > 0

    # Training batches

    @pytest.mark.parametrize("group", [ALONE, *PAIR], ids=["alone", "rank 0 of 2", "rank 1 of 2"])
    def test_batches_can_start_at_any_step(self, make: Make, group: Group) -> None:
        """A run that goes on, or branches off, sees what an uninterrupted one sees."""
        epoch = make().steps_per_epoch(group)
        torch.manual_seed(0)
        whole = steps(make(), 0, epoch + 4, group)
        for start in (2, epoch - 1, epoch, epoch + 1):
            torch.manual_seed(start)  # the global generator decides nothing
            assert same(steps(make(), start, epoch + 4, group), whole[start:]), start

    def test_order_differs_between_epochs_and_seeds(self, make: Make) -> None:
        """Of several random seeds none repeats another."""
        epoch = make().steps_per_epoch(ALONE)
        two_epochs = steps(make(), 0, 2 * epoch)
        assert not same(two_epochs[:epoch], two_epochs[epoch:])
        assert not same(two_epochs[:epoch], steps(make(seed=2), 0, epoch))

    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_ranks_share_the_epoch(
        self,
        make: Make,
        example_ids: Callable[[Any], list[Any]],
        together: bool,
        accumulate: int,
    ) -> None:
        """However many ranks there are, an epoch has the same examples."""
        task = make(accumulate=accumulate)
        epoch = task.steps_per_epoch(ALONE)
        shares = [steps(task, 0, task.steps_per_epoch(group), group) for group in PAIR]
        assert [len(step) for step in shares[0]] == [len(step) for step in shares[1]]
        assert max(map(len, shares[0])) == accumulate

        def ids(step: Sequence[Any]) -> Counter[Any]:
            return Counter(example for batch in step for example in example_ids(batch))

        alone = [ids(step) for step in steps(task, 0, epoch)]
        both = [ids(one) + ids(other) for one, other in zip(*shares, strict=True)]
        assert sum(both, Counter()) == sum(alone, Counter())
        if together:
            assert both == alone

    # Loss and metrics

    def test_loss_is_a_sum_with_its_count(self, make: Make, model: nn.Module) -> None:
        """So an epoch adds up to the same numbers however it is cut into micro-batches."""

        def epoch(accumulate: int, group: Group) -> tuple[float, float]:
            task = make(accumulate=accumulate)
            batches = steps(task, 0, task.steps_per_epoch(group), group)
            losses = [task.loss(model, batch) for step in batches for batch in step]
            assert all(loss.shape == () for loss, _ in losses)
            return sum(float(loss) for loss, _ in losses), sum(count for _, count in losses)

        loss, count = epoch(1, ALONE)
        shares = [epoch(2, group) for group in PAIR]
        assert sum(counted for _, counted in shares) == count > 0
        assert sum(lost for lost, _ in shares) == pytest.approx(loss, rel=1e-4)

    def test_metrics_are_those_of_the_recipe(self, built: Task[Any], model: nn.Module) -> None:
        """The watched one is among those of every evaluation, and all are in the final one."""
        named = {metric.name for metric in built.recipe.metrics}
        quick = built.evaluate(model, ALONE, split="valid", final=False)
        assert built.recipe.watched in quick
        assert quick.keys() <= named
        assert built.recipe.objective in named
        assert built.evaluate(model, ALONE, split="valid", final=True).keys() == named

    def test_evaluation_disturbs_nothing(self, built: Task[Any]) -> None:
        """How often is measured decides nothing."""
        model = model_of(built)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        generator = torch.get_rng_state()

        def measure() -> dict[str, float]:
            return evaluate(built, model, ALONE, placement=Placement(), split="valid", final=True)

        assert measure() == measure()
        assert torch.equal(torch.get_rng_state(), generator)
        assert same(model.state_dict(), state)

    # Training

    def test_a_run_that_goes_on_has_the_same_bits(self, make: Make, tmp_path: Path) -> None:
        """Model, optimizer, further state and step are all that a step depends on."""

        def learner() -> SingleModel:
            task = make()
            plan = TrainPlan(
                task="contract",
                recipe=task.recipe.model_dump(mode="json"),
                seed=1,
                data_dir=tmp_path,
                log_dir=tmp_path,
                checkpoint_dir=tmp_path,
                schedule=Knee(seed_lr=task.recipe.seed_lr, total_steps=4, explore_steps=2),
                steps_per_evaluation=4,
            )
            return SingleModel(task, plan, ALONE)

        def trained(model: SingleModel, *numbers: int) -> dict[str, Any]:
            model.model.train()
            for number in numbers:
                for seed_all in (torch.manual_seed, np.random.seed, random.seed):
                    seed_all(next(anything))  # what was drawn before decides nothing
                model.update(number)
            return model.state()

        anything = count()

        whole = trained(learner(), 1, 2, 3, 4)
        saved = io.BytesIO()
        torch.save(trained(learner(), 1, 2), saved)
        saved.seek(0)
        resumed = learner()
        resumed.load(torch.load(saved, weights_only=True), None)
        assert same(trained(resumed, 3, 4), whole)

    # Serving

    def test_one_answer_per_example(self, built: Task[Any], model: nn.Module) -> None:
        """What MLflow will ask of a registered model; passed over where there is no predict."""
        if not answers(type(getattr(built, "simple", built))):
            pytest.skip("it has no predict: its models are not registered")
        examples = built.examples()
        assert len(examples) >= 2
        assert len(built.predict(model, examples)) == len(examples)
        assert len(built.predict(model, examples[:1])) == 1


def rows_of(batch: Any) -> list[Any]:
    """The rows of a batch of tensors, each as what can be counted."""
    leaves = [leaf for leaf in tensors(batch) if leaf.dim()]
    return [tuple(leaf[row].numpy().tobytes() for leaf in leaves) for row in range(len(leaves[0]))]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor and number in a batch, in a fixed order."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return tensors([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, Mapping):
        return tensors([value[key] for key in sorted(value, key=str)])
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    if isinstance(value, str):
        value = list(value.encode())
    return [torch.tensor(np.nan if value is None else value)]


def same(left: Any, right: Any) -> bool:
    """Whether two batches, or lists of them, are the same bit for bit."""
    ours, theirs = tensors(left), tensors(right)
    return len(ours) == len(theirs) and all(
        torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
        for one, other in zip(ours, theirs, strict=True)
    )


def steps(task: Task[Any], start: int, end: int, group: Group = ALONE) -> list[Sequence[Any]]:
    """The micro-batches of the steps after ``start`` up to ``end``."""
    return list(islice(task.train_batches(start, group), end - start))


def model_of(task: Task[Any]) -> nn.Module:
    """A fresh model of random seed 0."""
    torch.manual_seed(0)
    return task.build_model()
