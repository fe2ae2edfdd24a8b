"""The order of rows in an epoch, by seed and epoch alone, so that a run can go on in the middle of one."""

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

STEP = 1_000_003  # from the seed of one epoch to that of the next


class SameOrder(TrainerCallback):
    """Gives the sampler that groups rows by length a generator of its own for each epoch.

    Else it draws from torch's state, which is another one where a run goes on within an epoch.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        train_dataloader: DataLoader | None = None, **others: Any,
    ) -> None:  # fmt: skip
        """The epoch's generator; a run that goes on begins with the epoch it stopped in."""
        sampler: Any = getattr(getattr(train_dataloader, "batch_sampler", None), "sampler", None)
        if isinstance(sampler, LengthGroupedSampler):
            epoch = int((state.epoch or 0) + 1e-6)
            sampler.generator = torch.Generator().manual_seed(args.seed + STEP * epoch)
