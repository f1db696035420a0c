"""``KneeCallback``: a fit of Lightning's Trainer as a run of knee-tune.

The Trainer keeps its loops. Its loader is replaced by one that takes every step from the run:
asking for the first batch of a step says that the step before is over, its validation included.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, IterableDataset

from knee_tune.errors import UserError
from knee_tune.scripts.batches import batches_after
from knee_tune.scripts.run import Rank, Run, join
from knee_tune.scripts.state import State
from knee_tune.workers.group import Group

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:  # of the two packages with the same classes the one that the script has imported
    Callback = import_module(
        "pytorch_lightning" if "pytorch_lightning" in sys.modules else "lightning.pytorch"
    ).Callback

NEVER = sys.maxsize
"""Batches from one validation to the next: none between two that the run asks for."""

STRATEGIES = ("DDPStrategy", "SingleDeviceStrategy")
"""Those that leave whole parameters and optimizers to every rank."""


class KneeCallback(Callback):  # type: ignore[misc]
    """Callback that makes a fit of the Trainer a run of a study, or a plain run if it is alone.

    ``steps`` to ``seed``: as of ``join``; steps are updates of the optimizer. ``minimize`` or
    ``maximize`` names what the module logs in validation. ``data``: unless given, the data set of
    the train loader. ``serve``: as of ``run.finish``. The run's steps, evaluations and LRs take the
    place of the Trainer's ``max_epochs``, ``max_steps``, ``val_check_interval`` and schedulers.

    UserError, when the fit begins, for what would not be exact or is knee-tune's to decide.
    """

    run: Run
    """The run, from the moment the fit begins."""

    def __init__(
        self,
        *,
        steps: int | None = None,
        evaluate_every: int | None = None,
        minimize: str | None = None,
        maximize: str | None = None,
        seed_lr: float | None = None,
        explore: float = 0.5,
        warmup_steps: int = 0,
        state: State | None = None,
        data: Any = None,
        seed: int = 1,
        serve: str | None = None,
    ) -> None:
        self._join = partial(
            join,
            steps=steps,
            evaluate_every=evaluate_every,
            minimize=minimize,
            maximize=maximize,
            seed_lr=seed_lr,
            explore=explore,
            warmup_steps=warmup_steps,
            seed=seed,
        )
        self._state, self._data, self._serve = state or {}, data, serve
        self._batches: Iterator[Any] = iter(())
        if Rank.here is not None:
            os.environ |= _environment(Rank.here.group)
            # What Lightning has to change in its own code is nobody's concern at every trial.
            warnings.filterwarnings(
                "ignore", category=FutureWarning, module=r"(pytorch_)?lightning"
            )

    def setup(self, trainer: "Trainer", pl_module: "LightningModule", stage: str) -> None:
        """Leave out, in a study, what writes files and lines that nobody asked this run for."""
        if Rank.here is not None:
            trainer.callbacks = [
                each
                for each in trainer.callbacks
                if not _is_a(each, "Checkpoint", "ProgressBar", "ModelSummary")
            ]

    def on_fit_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Join, go to where the run starts, and give the Trainer the run's batches."""
        _check(trainer)
        loop = trainer.fit_loop
        loop.setup_data()
        loader = trainer.train_dataloader
        if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
            raise UserError(
                "KneeCallback: only one loader of a map-style data set can be begun in the middle "
                "of an epoch; for others write the loop yourself, with knee_tune.join"
            )
        if not len(loader):
            raise UserError("KneeCallback: the train loader has no batch; is its data set empty?")
        self.run = self._join(
            pl_module,
            trainer.optimizers,
            state={**_state_of(trainer), **self._state},
            data=loader.dataset if self._data is None else self._data,
        )
        of_epoch = -(-len(loader) // trainer.accumulate_grad_batches)
        loop.min_epochs, loop.max_epochs = None, -(-self.run.total_steps // of_epoch)
        # With manual optimization the Trainer counts the updates of all optimizers.
        counts_steps = pl_module.automatic_optimization
        loop.epoch_loop.min_steps = None
        loop.epoch_loop.max_steps = self.run.total_steps if counts_steps else -1
        trainer.check_val_every_n_epoch, trainer._val_check_time_interval = None, None
        trainer.val_check_batch = NEVER
        self._batches = self.batches(trainer, loader)
        loop._combined_loader.flattened = [_Epochs(self._batches, len(loader))]
        iter(loop._data_fetcher)

    def batches(self, trainer: "Trainer", loader: DataLoader[Any]) -> Iterator[Any]:
        """Yield the batches of every step, and have the Trainer validate after the right ones.

        As the Trainer has it the last step of an epoch accumulates what is left of it.
        """
        accumulated, of_epoch = trainer.accumulate_grad_batches, len(loader)
        batches: Iterator[Any] | None = None
        for step in self.run.steps():
            if trainer.lightning_module.automatic_optimization and trainer.global_step != step - 1:
                raise UserError(
                    f"KneeCallback: step {step - 1} of the run is the trainer's "
                    f"{trainer.global_step}; do not skip batches (on_train_batch_start)"
                )
            epoch, place = divmod(step - 1, -(-of_epoch // accumulated))
            first = place * accumulated
            last = min(first + accumulated, of_epoch) - 1
            if batches is None:
                start = epoch * of_epoch + first
                batches = batches_after(loader, start, seed=self.run.seed, rank=trainer.global_rank)
            for number in range(first, last + 1):
                due = number == last and self.run.evaluate_now
                trainer.val_check_batch = 1 if due else NEVER
                yield next(batches)
        trainer.should_stop = True

    def on_validation_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Report what was logged in this validation; of what training logs nothing counts."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            results = trainer.fit_loop.epoch_loop.val_loop._results
            self.run.report(**results.metrics(on_step=False)["callback"])

    def on_fit_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """End the run, whose last step is made."""
        if self.run.step < self.run.total_steps:
            raise UserError(
                f"KneeCallback: the trainer stopped at step {self.run.step} of "
                f"{self.run.total_steps}; remove what stops it (max_time, should_stop)"
            )
        next(self._batches, None)
        self.run.finish(serve=self._serve)


class _Epochs:
    """A run's batches as a loader that has the length of an epoch: each goes on where one ended."""

    def __init__(self, batches: Iterator[Any], length: int) -> None:
        self._batches, self._length = batches, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: where the batches go on is known to the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


def _environment(group: Group) -> dict[str, str]:
    """What tells the Trainer that its ranks are started, and what it takes for its arguments.

    They count where it is not given others. With three ranks and more it is by looking for unused
    parameters that DDP sums up the same bits wherever a run begins.
    """
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    exact = "ddp" if group.world_size == 2 else "ddp_find_unused_parameters_true"
    arguments = {
        "accelerator": group.device.type,
        "devices": local,
        "num_nodes": group.world_size // local,
        "strategy": "auto" if group.world_size == 1 else exact,
        "logger": False,
        "max_epochs": -1,  # or it warns; the run decides
        "num_sanity_val_steps": 0,
    }
    # Without that name Lightning would take a Slurm job's processes for its ranks.
    started = {"TORCHELASTIC_RUN_ID": os.environ.get("TORCHELASTIC_RUN_ID", "knee-tune")}
    return started | {f"PL_TRAINER_{name.upper()}": str(each) for name, each in arguments.items()}


def _check(trainer: "Trainer") -> None:
    """UserError for what decides over a run beside knee-tune, or is not known to be exact."""
    if type(trainer.strategy).__name__ not in STRATEGIES:
        raise UserError(
            f"KneeCallback: {type(trainer.strategy).__name__}: parameters that are spread over "
            "ranks are not restored; use strategy='ddp', or one device"
        )
    if trainer.lr_scheduler_configs:
        raise UserError(
            "KneeCallback: knee-tune writes the LR; have configure_optimizers return no scheduler"
        )
    if not trainer.optimizers:
        raise UserError("KneeCallback: configure_optimizers returned no optimizer")
    if not trainer.enable_validation:
        raise UserError(
            "KneeCallback: nothing is validated; give the trainer a validation loader and log the "
            "metric in validation_step"
        )
    partly = {
        "fast_dev_run": trainer.fast_dev_run,
        "limit_train_batches": trainer.limit_train_batches != 1.0,
        "overfit_batches": trainer.overfit_batches,
        "reload_dataloaders_every_n_epochs": trainer.reload_dataloaders_every_n_epochs,
    }
    for name in (name for name, asked in partly.items() if asked):
        raise UserError(f"KneeCallback: an epoch is the whole of the train loader; remove {name}=")
    for callback in trainer.callbacks:
        name = type(callback).__name__
        if _is_a(callback, "EarlyStopping"):
            raise UserError(f"KneeCallback: remove {name}: the study's pruner ends runs early")
        if _is_a(callback, "GradientAccumulationScheduler", "StochasticWeightAveraging"):
            raise UserError(f"KneeCallback: remove {name}: steps and LRs are knee-tune's")
        if _has_own(callback, "on_save_checkpoint"):
            raise UserError(
                f"KneeCallback: {name} keeps its state in on_save_checkpoint, which is not called; "
                "give it state_dict and load_state_dict, or remove it"
            )


def _state_of(trainer: "Trainer") -> dict[str, Any]:
    """What the next step depends on besides model and optimizers: counts, a scaler, callbacks."""
    state = {"fit_loop": trainer.fit_loop}
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        state["precision"] = trainer.precision_plugin
    for callback in trainer.callbacks:
        if _has_own(callback, "state_dict"):
            state[callback.state_key] = callback
    return state


def _has_own(callback: Any, method: str) -> bool:
    """Whether it defines the method itself; where files are written is of no interest to a run."""
    definer = next(kind for kind in type(callback).__mro__ if method in vars(kind))
    return definer.__name__ != "Callback" and not _is_a(callback, "Checkpoint")


def _is_a(value: Any, *names: str) -> bool:
    """Whether a class of its has one of these names, in either of the two packages."""
    return any(kind.__name__ in names for kind in type(value).__mro__)
