"""What a run is made of, between the recipe (tiekd/run.py builds it) and the loop."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tiekd import distributed
from tiekd.data.batch import Batch
from tiekd.data.loader import Loading, Unreadable, training_batches
from tiekd.data.resize import Resize
from tiekd.data.sampler import MicroBatches
from tiekd.data.transforms import Augment
from tiekd.engine import EngineConfig
from tiekd.hooks.text_log import TextLog
from tiekd.loop import TrainState
from tiekd.losses.criterion import Criterion
from tiekd.options import TrainSettings
from tiekd.schedules import Schedule


class Parts(NamedTuple):
    """What a run is made of, all checked, before anything is written and without the engine; `state` lacks that."""

    options: TrainSettings
    config: EngineConfig
    device: torch.device
    network: nn.Module
    replica: nn.Module | None  # of the network, for evaluations
    criterion: Criterion
    teacher: Callable[[Batch], Tensor]
    train_set: Dataset
    val_set: Dataset | None
    augment: Augment
    resize: Resize
    loading: Loading
    groups: list[int] | None  # of the training frames, by size, where a batch holds one size
    unreadable: Unreadable | None
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    state: TrainState
    log: TextLog
    report: list[str]  # for the log

    def batches(self, end: int) -> Iterator[Batch]:
        """This rank's micro-batches from where the run stands up to iteration `end`."""
        sampler = MicroBatches(
            len(self.train_set),
            self.options.batch_size,
            self.config.accumulation,
            distributed.rank(),
            distributed.world_size(),
            self.options.seed,
            self.state.iteration,
            end,
            self.groups,
        )
        workers, timeout_s = self.loading.workers, self.loading.timeout_s
        return training_batches(
            self.train_set,
            sampler,
            self.augment,
            self.options.seed,
            workers,
            self.device,
            timeout_s,
            self.unreadable,
            self.resize,
        )
