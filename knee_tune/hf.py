"""transformers' Trainer as a run of knee-tune: its own loop, steered from a callback."""

import math
from collections.abc import Iterator
from typing import Any

from accelerate.utils import DistributedType
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, set_seed
from transformers import TrainingArguments as Arguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from knee_tune.errors import UserError
from knee_tune.scripts.batches import batches_after
from knee_tune.scripts.run import Ended, Rank, Run, join
from knee_tune.scripts.state import State
from knee_tune.tasks.seeding import seeded, stream_seed

DEFAULT_METRIC = "eval_loss"
"""What a Trainer is taken to minimize unless another of its metrics is named."""

TIMINGS = ("_runtime", "_per_second", "_preparation_time")
"""How those of Trainer's metrics end that tell of the machine."""


def attach(
    trainer: Trainer,
    *,
    minimize: str | None = None,
    maximize: str | None = None,
    explore: float = 0.5,
    state: State | None = None,
    serve: str | None = None,
) -> Run:
    """Have knee-tune steer ``trainer.train()``, which is called afterwards, as always.

    Under ``knee-tune run`` the study says how to train. What the arguments of training say is what
    it says where the command line does not: ``max_steps`` or ``num_train_epochs``, ``eval_steps``,
    ``learning_rate`` (the seed LR), ``warmup_steps``; alone ``seed``, too. Steps are optimizer
    updates, of ``gradient_accumulation_steps`` batches each, also across the end of an epoch.

    ``minimize`` or ``maximize``: one of Trainer's metrics, ``eval_loss`` unless named. ``explore``,
    ``state``: see :func:`knee_tune.join`. ``serve``: see :meth:`Run.finish
    <knee_tune.scripts.run.Run.finish>`. In a study Trainer saves, prints and tracks nothing, and
    ``train()`` does not return: the script ends with it. UserError for arguments that contradict.
    """
    _check(trainer)
    args = trainer.args
    loader = trainer.get_train_dataloader()
    steps_per_epoch = len(loader) / args.gradient_accumulation_steps
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * steps_per_epoch)
    scaler = trainer.accelerator.scaler
    run = join(
        trainer.model,
        trainer.create_optimizer(),
        steps=steps,
        evaluate_every=_evaluate_every(args, steps, steps_per_epoch),
        minimize=minimize if minimize or maximize else DEFAULT_METRIC,
        maximize=maximize,
        explore=explore,
        warmup_steps=args.get_warmup_steps(steps),
        state={**(state or {}), **({} if scaler is None else {"scaler": scaler})},
        data={"train": trainer.train_dataset, "eval": trainer.eval_dataset},
        seed=args.seed,
    )
    set_seed(run.seed)  # Trainer has seeded by its own
    args.max_steps = run.total_steps
    args.eval_strategy = IntervalStrategy.STEPS  # the run says at which
    args.dataloader_persistent_workers = False  # they draw on from one evaluation to the next
    trainer.lr_scheduler = _Written(trainer.optimizer)
    trainer.get_train_dataloader = _Batches(trainer, run)
    if Rank.here is not None:
        _keep_quiet(trainer)
    trainer.add_callback(_Steering(run, steps_per_epoch=steps_per_epoch, serve=serve))
    return run


def _check(trainer: Trainer) -> None:
    """UserError for what no run of knee-tune can be."""
    args, data, accelerator = trainer.args, trainer.train_dataset, trainer.accelerator
    ranks = accelerator.distributed_type
    refused = (
        (data is None, "train_dataset=None: give Trainer one"),
        (
            isinstance(data, IterableDataset) or not hasattr(data, "__len__"),
            "train_dataset is a stream, which cannot be begun in its middle; take one that is "
            "map-style",
        ),
        (
            trainer.eval_dataset is None,
            "eval_dataset=None: its metrics are what a run is judged by; give Trainer one",
        ),
        (
            trainer.lr_scheduler is not None,
            "a scheduler in optimizers=: knee-tune writes the LR; give (optimizer, None)",
        ),
        (
            trainer.model_init is not None,
            "model_init= makes another model when training begins; give Trainer the model",
        ),
        (
            args.load_best_model_at_end,
            "load_best_model_at_end=True: knee-tune keeps the weights; remove it, and choose "
            "`recipe.keep=best`",
        ),
        (
            args.auto_find_batch_size,
            "auto_find_batch_size=True: batches would depend on the machine; remove it",
        ),
        (
            accelerator.dispatch_batches,
            "dispatch_batches=True: every rank reads its own batches; remove it",
        ),
        (
            ranks is not DistributedType.NO and not ranks.value.startswith("MULTI_"),
            f"{ranks.value}: ranks that share the weights among them are not supported; train "
            "data-parallel (DDP)",
        ),
        (
            getattr(accelerator, "parallelism_config", None) is not None,
            "parallelism_config: only data-parallel training (DDP) is supported; remove it",
        ),
        (args.n_gpu > 1, f"one process with {args.n_gpu} GPUs: train with one for each (--nproc)"),
    )
    for found, what in refused:
        if found:
            raise UserError(f"attach: {what}")


def _evaluate_every(args: Arguments, steps: int, steps_per_epoch: float) -> int | None:
    """Steps from one evaluation to the next, as the arguments say; None if they do not."""
    if args.eval_strategy == IntervalStrategy.EPOCH:
        return math.ceil(steps_per_epoch)
    if args.eval_strategy == IntervalStrategy.STEPS:
        every = float(args.eval_steps)
        return math.ceil(every * steps if every < 1 else every)
    return None


def _keep_quiet(trainer: Trainer) -> None:
    """Have Trainer leave the records to the study: trials of one script run beside each other."""
    trainer.args.save_strategy = SaveStrategy.NO
    for callback in [*trainer.callback_handler.callbacks]:
        told_elsewhere = type(callback).__module__.startswith("transformers.integrations")
        if told_elsewhere or isinstance(callback, PrinterCallback | ProgressCallback):
            trainer.remove_callback(callback)


class _Written(LRScheduler):
    """The scheduler that Trainer steps: it leaves the LRs as the run has written them."""

    def step(self, epoch: int | None = None) -> None:
        """Do nothing."""

    def get_last_lr(self) -> list[Any]:
        """Return the LRs of the step that is being made."""
        return [group["lr"] for group in self.optimizer.param_groups]


class _Batches:
    """Trainer's ``get_train_dataloader``: its batches as a function of (seed, epoch, number).

    Without a length: so Trainer takes the run for one long epoch and counts the steps alone, which
    makes that it can begin anywhere.
    """

    def __init__(self, trainer: Trainer, run: Run) -> None:
        self._trainer, self._run = trainer, run
        self._loader = trainer.get_train_dataloader

    def __call__(self) -> "_Batches":
        return self

    def __iter__(self) -> Iterator[Any]:
        args, seed = self._trainer.args, self._run.seed
        with seeded(stream_seed(seed, "order")):  # accelerate's sampler takes its seed here
            loader = self._loader()
        made = self._run.step * args.gradient_accumulation_steps
        return batches_after(loader, made, seed=seed, rank=args.process_index)


class _Steering(TrainerCallback):  # type: ignore[misc]
    """Takes the run's steps: a step is over when Trainer begins the next, or ends.

    By then all that belongs to it is done, evaluations too. A run that is stopped ends the script
    from within the callback, on every rank at the same step.
    """

    def __init__(self, run: Run, *, steps_per_epoch: float, serve: str | None) -> None:
        self._run, self._steps = run, run.steps()
        self._steps_per_epoch, self._serve = steps_per_epoch, serve

    def on_train_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Tell Trainer where the run begins."""
        if state.global_step or self._run.begun:
            raise UserError(
                "attach: a run goes on by itself; call trainer.train() once, without "
                "resume_from_checkpoint"
            )
        state.global_step = self._run.step

    def on_step_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the step before, and begin this one: its LRs are written."""
        next(self._steps)

    def on_step_end(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for an evaluation where the run wants one."""
        state.epoch = state.global_step / self._steps_per_epoch
        control.should_evaluate = self._run.evaluate_now

    def on_evaluate(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Report what was measured."""
        if self._run.begun and not self._run.ended:
            measured = {
                name: value
                for name, value in (metrics or {}).items()
                if name.startswith("eval_") and not name.endswith(TIMINGS)
            }
            self._run.report(**measured)

    def on_train_end(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the last step, and the run."""
        if state.global_step < self._run.total_steps:
            raise UserError(
                f"attach: training ended at step {state.global_step} of {self._run.total_steps}; "
                "remove the callback that ends it, as EarlyStoppingCallback: knee-tune prunes"
            )
        for _step in self._steps:
            raise AssertionError("Trainer makes fewer steps than the run has")
        self._run.finish(serve=self._serve)
        if Rank.here is not None:
            raise Ended(0)
