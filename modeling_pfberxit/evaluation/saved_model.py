"""A saved model and a split of a data set, encoded with the model's own labels; commands begin with these."""

from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer

from ..data.tasks import Task, encode, load_task
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .recording import Recording, record


def model_and_rows(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any] | None = None
) -> tuple[PFBerxitForSequenceClassification, Task, Dataset]:
    """A saved model, the task with the model's own labels, and a split of its data (or `all` of them), encoded.

    Args:
        columns: the data set's columns that are named, as `load_task` takes them.
    """
    loaded = PFBerxitForSequenceClassification.from_pretrained(model).eval()
    task, data = load_task(dataset, config, **(columns or {}), model=loaded)
    split = split or task.evaluation_split
    if split == "all":
        data[split] = concatenate_datasets(list(data.values()))
    if split not in data:
        refuse("split", split, f"one of {', '.join(data)}, or all")
    part = data[split] if not rows else data[split].select(range(min(rows, len(data[split]))))
    return loaded, task, encode(task, part, AutoTokenizer.from_pretrained(model, padding_side="right"))


def recorded(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any] | None = None
) -> tuple[PFBerxitForSequenceClassification, Task, Recording]:
    """A saved model, the task, and a recording of the model on a split of its data."""
    loaded, task, encoded = model_and_rows(model, dataset, config, split, rows, columns)
    split = split or task.evaluation_split
    source = {"dataset": task.dataset, "config": task.config, "split": split, "metric": task.metric}
    return loaded, task, record(loaded, encoded, **source)
