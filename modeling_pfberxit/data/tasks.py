"""What is learned from which columns: the package's own tasks, GLUE, and whatever a data set's columns say."""

import os
from dataclasses import dataclass, replace

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.validation import refuse
from . import INTENTS, TOPICS, read_support_desk

SOURCE = "source of labels"  # the label column while rows are encoded


@dataclass(frozen=True)
class Task:
    """A data set and how to read it.

    Args:
        dataset, config: as for `load_dataset`; `support_desk` is the one in the package.
        texts: one column, or two for pairs of sentences.
        metric: a name in `training.metrics.METRICS`.
    """

    name: str
    dataset: str
    config: str | None
    texts: tuple[str, ...]
    label: str = "label"
    problem_type: str = SINGLE_LABEL
    labels: tuple[str, ...] = ()
    metric: str = "accuracy"
    evaluation_split: str = "validation"

    @property
    def num_labels(self) -> int:
        """Outputs of a model for this task."""
        return len(self.labels)


DESK = Task("intent", "support_desk", "intent", ("text",), "intent", labels=INTENTS, evaluation_split="test")
SUPPORT_DESK_TASKS = {
    "intent": DESK,
    "topics": replace(
        DESK, name="topics", config="topics", label="topics", problem_type=MULTI_LABEL, labels=TOPICS, metric="micro_f1"
    ),
    "urgency": replace(
        DESK, name="urgency", config="urgency", label="urgency", problem_type=REGRESSION, labels=("urgency",),
        metric="correlation",
    ),
}  # fmt: skip
PAIR, GLUE = ("sentence1", "sentence2"), "nyu-mll/glue"
GLUE_TASKS = {
    "cola": Task("cola", GLUE, "cola", ("sentence",), metric="matthews"),
    "sst2": Task("sst2", GLUE, "sst2", ("sentence",)),
    "mrpc": Task("mrpc", GLUE, "mrpc", PAIR, metric="accuracy_f1"),
    "stsb": Task("stsb", GLUE, "stsb", PAIR, problem_type=REGRESSION, metric="correlation"),
    "qqp": Task("qqp", GLUE, "qqp", ("question1", "question2"), metric="accuracy_f1"),
    "mnli": Task("mnli", GLUE, "mnli", ("premise", "hypothesis"), evaluation_split="validation_matched"),
    "qnli": Task("qnli", GLUE, "qnli", ("question", "sentence")),
    "rte": Task("rte", GLUE, "rte", PAIR),
}


def load_task(dataset: str = "support_desk", config: str | None = None) -> tuple[Task, DatasetDict]:
    """A task and its data.

    Args:
        dataset: `support_desk`, or anything `load_dataset` takes: a Hub id or a folder.
        config: for `support_desk` one of intent, topics, urgency; for GLUE the task.

    Raises:
        ValueError, OSError: the data set is not there, or has no columns to learn from.
    """
    if dataset == "support_desk":
        config = config or "intent"
        if config not in SUPPORT_DESK_TASKS:
            refuse("config", config, f"one of {', '.join(SUPPORT_DESK_TASKS)} for support_desk")
        task = SUPPORT_DESK_TASKS[config]
        return task, DatasetDict({split: Dataset.from_list(desk_rows(split, task)) for split in ("train", "test")})
    try:
        data = load_dataset(dataset, config)
    except Exception as error:  # the loader raises many kinds
        raise OSError(f"dataset={dataset!r}, config={config!r}: could not be loaded ({error}).") from error
    task = GLUE_TASKS.get(config or "")
    if task is None or not set(task.texts) <= set(data["train"].column_names):
        task = Task(config or os.path.basename(dataset), dataset, config, text_columns(data["train"]))
    return read_labels(replace(task, dataset=dataset), data), data


def desk_rows(split: str, task: Task) -> list[dict]:
    """Rows of the support desk with the task's column as `label`, classes as ids and topics as a 0/1 list."""
    rows = read_support_desk(split)
    for row in rows:
        if task.problem_type == SINGLE_LABEL:
            row[task.label] = task.labels.index(row[task.label])
        elif task.problem_type == MULTI_LABEL:
            row[task.label] = [task.labels.index(topic) for topic in row[task.label]]
    return rows


def text_columns(data: Dataset) -> tuple[str, ...]:
    """The columns that hold text: those of type string, two at most."""
    found = tuple(name for name, kind in data.features.items() if getattr(kind, "dtype", None) == "string")
    if not 1 <= len(found) <= 2:
        refuse("dataset", list(data.features), "one with one or two columns of text (string)")
    return found


def read_labels(task: Task, data: DatasetDict) -> Task:
    """Fill in what the label column says: names, problem type, metric, and which split to evaluate on."""
    train = data["train"]
    label = next((name for name in (task.label, "label", "labels") if name in train.features), None)
    if label is None:
        refuse("dataset", list(train.features), "one with a column `label` or `labels`")
    kind, known = train.features[label], task.name in GLUE_TASKS
    inner = getattr(kind, "feature", None)
    split = next((name for name in (task.evaluation_split, "validation", "test") if name in data), "train")
    task = replace(task, label=label, evaluation_split=split)
    if inner is not None:
        names = inner.names if isinstance(inner, ClassLabel) else _numbers(max(map(max, filter(None, train[label]))))
        return replace(task, problem_type=MULTI_LABEL, labels=tuple(names), metric="micro_f1")
    if getattr(kind, "dtype", "").startswith("float"):
        return replace(task, problem_type=REGRESSION, labels=(label,), metric="correlation")
    names = kind.names if isinstance(kind, ClassLabel) else _numbers(max(train[label]))
    return replace(task, labels=tuple(names), metric=task.metric if known else "accuracy")


def encode(task: Task, data: Dataset, tokenizer, max_length: int = 128) -> Dataset:
    """Tokens and `labels`, ready for `Trainer`; texts are cut to `max_length` tokens."""

    # Under a name of its own: a new column called as an old one would be given the old one's type.
    data = data.rename_column(task.label, SOURCE)

    def encode_batch(batch: dict) -> dict:
        """Columns of texts and labels -> columns of tokens and `labels`."""
        tokens = tokenizer(*(batch[name] for name in task.texts), truncation=True, max_length=max_length)
        values = batch[SOURCE]
        if task.problem_type == MULTI_LABEL:
            values = [np.isin(np.arange(task.num_labels), ids).astype(np.float32).tolist() for ids in values]
        elif task.problem_type == REGRESSION:
            values = [float(value) for value in values]
        return {**tokens, "labels": values}

    return data.map(encode_batch, batched=True, remove_columns=data.column_names, desc=f"Tokenising {task.name}")


def _numbers(highest: int) -> list[str]:
    return [str(number) for number in range(highest + 1)]
