"""A data set that was read: its task, its splits, and a hash of what is in them, whatever it is called."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from datasets import Dataset, DatasetDict

from .tasks import Task, load_task


@dataclass(frozen=True, eq=False)
class Source:
    """What a data set's name stood for when it was read.

    Args:
        dataset, config: as for `load_dataset`; `support_desk` is the one in the package.
    """

    dataset: str
    config: str | None
    task: Task
    data: DatasetDict

    @classmethod
    def read(cls, dataset: str, config: str | None = None) -> "Source":
        """Load it; what `load_task` refuses is refused."""
        return cls(dataset, config, *load_task(dataset, config))

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Hashes of the texts and labels that are trained on (`train`) and reported on (`evaluation`)."""
        columns = [*self.task.texts, self.task.label]
        splits = {"train": "train", "evaluation": self.task.evaluation_split}
        return {part: content_hash(self.data[split], columns) for part, split in splits.items()}


def content_hash(rows: Dataset, columns: list[str]) -> str:
    """The sha256 of some columns' values in the rows' order; what the columns are called is not in it."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(columns).iter(1000):
        digest.update(json.dumps([batch[name] for name in columns]).encode())
    return digest.hexdigest()
