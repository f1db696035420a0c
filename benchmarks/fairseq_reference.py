"""fairseq's own Trainer on our task's model, data and optimizer: what our loop is compared with."""

from collections.abc import Iterator
from typing import Any

import torch
from fairseq.data.iterators import GroupedIterator
from fairseq.dataclass.configs import FairseqConfig
from fairseq.logging import metrics
from fairseq.models import distributed_fairseq_model
from fairseq.optim import FairseqOptimizer, lr_scheduler
from fairseq.trainer import Trainer
from omegaconf import OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from knee_tune.tasks.translation import fairseq_bridge as bridge
from knee_tune.tasks.translation.task import TranslationTask
from knee_tune.training.optimizer import build_optimizer
from knee_tune.workers.group import Group


class WrappedOptimizer(FairseqOptimizer):  # type: ignore[misc]
    """Any torch optimizer, as fairseq's Trainer wants to see it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(cfg=None)
        self._optimizer = optimizer


class Reference:
    """fairseq's Trainer at a constant LR; ``step()`` is one update, data loading included."""

    def __init__(self, task: TranslationTask, model: nn.Module, group: Group, *, lr: float) -> None:
        recipe = task.recipe
        config = OmegaConf.structured(FairseqConfig)
        OmegaConf.set_struct(config, False)
        config.common.seed = task.order_seed
        config.common.cpu = group.device.type == "cpu"
        max_tokens, multiple = task.batch_limits(group)
        config.dataset.max_tokens = max_tokens
        config.dataset.required_batch_size_multiple = multiple
        config.dataset.num_workers = 0
        config.optimization.clip_norm = recipe.clip_norm or 0.0
        config.optimization.lr = [lr]
        config.distributed_training.distributed_world_size = group.world_size
        config.distributed_training.ddp_backend = "pytorch_ddp"
        config.lr_scheduler = {"_name": "fixed", "lr": [lr], "warmup_updates": 0}

        metrics.reset()
        # fairseq names a device even on CPU, which torch refuses
        distributed_fairseq_model.DistributedDataParallel = _without_device
        folder, manifest = task._prepared
        fairseq_task = bridge.load_task(folder, manifest.source, manifest.target, recipe)
        fairseq_task.load_dataset("train")
        self.model = model
        self.trainer = Trainer(
            config, fairseq_task, model, bridge.build_criterion(fairseq_task, recipe)
        )
        optimizer = build_optimizer(recipe.optimizer, model)
        self.trainer._optimizer = WrappedOptimizer(optimizer)
        self.trainer._lr_scheduler = lr_scheduler.build_lr_scheduler(
            config.lr_scheduler, self.trainer.optimizer
        )
        self.trainer.lr_step_update()
        self._groups = self._endless(recipe.accumulate)

    def step(self) -> None:
        """One update on the next group of micro-batches."""
        self.trainer.train_step(next(self._groups))

    def _endless(self, accumulate: int) -> Iterator[Any]:
        epochs = self.trainer.get_train_iterator(epoch=1, load_dataset=False)
        while True:
            yield from GroupedIterator(epochs.next_epoch_itr(shuffle=True), accumulate)


def _without_device(
    *, device_ids: Any, output_device: Any, **options: Any
) -> DistributedDataParallel:
    return DistributedDataParallel(**options)
