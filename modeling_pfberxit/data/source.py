"""A data set with its task and a hash of its contents, by which caches know it, whatever its name."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset, DatasetDict

from .tasks import Task, load_task, targets


@dataclass(frozen=True, eq=False)
class Source:
    """The task and the splits that a data set's name stood for when it was read.

    Args:
        dataset, config: as for `load_task`; `support_desk` is the one in the package.
    """

    dataset: str
    config: str | None
    task: Task
    data: DatasetDict

    @classmethod
    def read(cls, dataset: str, config: str | None = None, **columns: Any) -> "Source":
        """Load a data set; arguments and errors are those of `load_task`."""
        return cls(dataset, config, *load_task(dataset, config, **columns))

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Hashes of the texts and targets that are trained on (`train`) and reported on (`evaluation`)."""
        splits = {"train": "train", "evaluation": self.task.evaluation_split}
        return {part: content_hash(self.task, self.data[split]) for part, split in splits.items()}


def content_hash(task: Task, rows: Dataset) -> str:
    """The sha256 of the rows' texts and targets in their order; names of columns and labels are not in it."""
    digest = hashlib.sha256()
    for batch in rows.select_columns(list(task.texts)).iter(1000):
        digest.update(json.dumps([batch[name] for name in task.texts]).encode())
    digest.update(json.dumps(targets(task, rows, "the rows")).encode())
    return digest.hexdigest()
