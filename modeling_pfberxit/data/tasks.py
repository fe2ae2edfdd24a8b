"""Tasks: the columns of text and label of the package's data set, of GLUE, and of a user's data sets and files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import label_names, one_of, optional, refuse
from . import INTENTS, TOPICS
from .columns import check_split, choose_label, choose_texts
from .labels import CLASS, LISTS, PROBLEM_TYPES, VALUE, LabelColumn, label_column, read_form
from .readers import name_of
from .separators import FORMS, find_separator
from .splits import EVALUATION, hold_out, report_shared
from .targets import check_alike, read_names, read_targets
from .texts import ALL, choose_split, encode_texts, read_any

METRIC_OF = {SINGLE_LABEL: "accuracy", MULTI_LABEL: "micro_f1", REGRESSION: "correlation"}


@dataclass(frozen=True)
class Task:
    """A data set, and how its texts and labels are read.

    Args:
        dataset, config: as for `load_dataset`, or a file; `support_desk` is the one in the package.
        texts: one column, or two for pairs of sentences.
        label: the label's column, or a column of 0 and 1 for every label.
        labels: the names of the model's outputs, in their order.
        metric: a name in `data.metrics.METRICS`.
        form: how a row's label is written (`data.labels`).
        separator: what stands between several labels in one string.
    """

    name: str
    dataset: str
    config: str | None
    texts: tuple[str, ...]
    label: str | tuple[str, ...] = "label"
    problem_type: str = SINGLE_LABEL
    labels: tuple[str, ...] = ()
    metric: str = "accuracy"
    evaluation_split: str = "validation"
    form: str = CLASS
    separator: str | None = None

    @property
    def num_labels(self) -> int:
        """Outputs of a model for this task."""
        return len(self.labels)


DESK = Task("intent", "support_desk", "intent", ("text",), "intent", labels=INTENTS, evaluation_split="test")
SUPPORT_DESK_TASKS = {
    "intent": DESK,
    "topics": replace(
        DESK, name="topics", config="topics", label="topics", problem_type=MULTI_LABEL, labels=TOPICS, form=LISTS,
        metric="micro_f1",
    ),
    "urgency": replace(
        DESK, name="urgency", config="urgency", label="urgency", problem_type=REGRESSION, labels=("urgency",),
        form=VALUE, metric="correlation",
    ),
}  # fmt: skip
PAIR, GLUE = ("sentence1", "sentence2"), "nyu-mll/glue"
GLUE_TASKS = {
    "cola": Task("cola", GLUE, "cola", ("sentence",), metric="matthews"),
    "sst2": Task("sst2", GLUE, "sst2", ("sentence",)),
    "mrpc": Task("mrpc", GLUE, "mrpc", PAIR, metric="accuracy_f1"),
    "stsb": Task("stsb", GLUE, "stsb", PAIR, problem_type=REGRESSION, metric="correlation", form=VALUE),
    "qqp": Task("qqp", GLUE, "qqp", ("question1", "question2"), metric="accuracy_f1"),
    "mnli": Task("mnli", GLUE, "mnli", ("premise", "hypothesis"), evaluation_split="validation_matched"),
    "qnli": Task("qnli", GLUE, "qnli", ("question", "sentence")),
    "rte": Task("rte", GLUE, "rte", PAIR),
}


def load_task(
    dataset: str | os.PathLike = "support_desk", config: str | None = None, *, text: str | None = None,
    pair: str | None = None, label: str | Sequence[str] | None = None, problem_type: str | None = None,
    label_form: str | None = None, split: str | None = None, model: PFBerxitForSequenceClassification | None = None,
) -> tuple[Task, DatasetDict]:  # fmt: skip
    """A task and its data. Columns are named or certain (`data.columns`), and so is how labels are written.

    Without a split to evaluate on, a fifth of the train split, drawn with seed 0, of classes a fifth of each, becomes
    `validation`. That, and rows that train and evaluation split share, is said.

    Args:
        dataset: `support_desk`, a Hub id, a folder, a file (csv, tsv, json, jsonl, parquet), a glob, `-` for stdin.
        config: for `support_desk` one of intent, topics, urgency; for GLUE the task.
        text, pair, label: the columns of the text, of the second text, and of the label or of each label.
        problem_type: where numbers could be classes or values, which.
        label_form: `lists` (of ids), `vectors` (of 0 and 1), or what separates labels in one string: `;`, `|` or `,`.
        split: to evaluate on, instead of `validation` or what else is called like one; `all`, with a model: every row.
        model: a saved model: the data's labels are found among its own, and no split `train` is needed.

    Raises:
        ValueError, OSError: the data set is not there, or what its columns mean is not certain.
    """
    check_kinds(problem_type, label_form)
    dataset = os.fspath(dataset)
    data, known = find(dataset, config, (text, pair, label))
    if split == ALL and model is not None:
        data = DatasetDict([choose_split(data, ALL)])
    evaluation = split_named(data, split) if split else evaluation_split(data, known, trains=model is None)
    first = "train" if "train" in data else str(evaluation)
    features = data[first].features
    name = choose_label(features, known.label if known and label is None else label)
    texts = known.texts if known and text is None and pair is None else choose_texts(features, text, pair, name)
    if known is None or name != known.label or problem_type not in (None, known.problem_type):
        known = new_task(dataset, config, texts)
    else:
        problem_type = known.problem_type
    task = replace(known, dataset=dataset, texts=texts, label=name, evaluation_split=evaluation or "validation")
    task, label_form = separated(task, data[first], problem_type, label_form, model)
    columns = {part: checked_labels(task, data[part], part) for part in dict.fromkeys((first, evaluation or first))}
    task = read_labels(task, columns[first], problem_type, label_form, model)
    check_columns(task, columns, columns[first])
    if evaluation is None:
        data = DatasetDict({**data, **hold_out(data["train"], classes_of(task, columns[first]))})
    report_shared(data, task.evaluation_split, task.texts)
    return task, data


def check_kinds(problem_type: str | None, label_form: str | None) -> None:
    """Refuse a problem type and a form of labels that there is not."""
    optional(one_of(SINGLE_LABEL, MULTI_LABEL, REGRESSION))("problem_type", problem_type)
    optional(one_of(*FORMS))("label_form", label_form)


def new_task(dataset: str, config: str | None, texts: tuple[str, ...]) -> Task:
    """A task that is none of those known here, called after its configuration or its data."""
    return Task(name_of(dataset) if config in (None, "default") else config, dataset, config, texts)


def separated(
    task: Task, rows: Dataset, problem_type: str | None, label_form: str | None,
    model: PFBerxitForSequenceClassification | None,
) -> tuple[Task, str | None]:  # fmt: skip
    """The task with what stands between several labels in one string, and the form of labels that is left to read."""
    if isinstance(task.label, str) and task.form == CLASS:
        task = replace(task, separator=find_separator(rows, task.label, problem_type, label_form, model))
    return task, None if task.separator else label_form


def check_columns(task: Task, columns: dict[str, LabelColumn], first: LabelColumn) -> None:
    """Refuse splits whose labels are not written as the first one's, or are none of the task's."""
    for column in columns.values():
        check_alike(first, column, task.labels)
        read_targets(column, task.form, task.labels)


def classes_of(task: Task, column: LabelColumn) -> list[str] | None:
    """Every row's class, in whose proportions rows are held out; None where rows have none."""
    return list(map(str, column.values)) if task.form == CLASS else None


def split_named(data: DatasetDict, split: str) -> str:
    """A split that the data set has."""
    return split if split in data else refuse("split", split, f"one of {', '.join(data)}")


def find(dataset: str, config: str | None, named: Sequence[Any] = ()) -> tuple[DatasetDict, Task | None]:
    """The splits, and the task if it is one of the package's or, by config and columns, of GLUE."""
    if dataset == "support_desk":
        config = config or "intent"
        if config not in SUPPORT_DESK_TASKS:
            refuse("config", config, f"one of {', '.join(SUPPORT_DESK_TASKS)} for support_desk")
        return read_any(dataset, config), SUPPORT_DESK_TASKS[config]
    data, known = read_any(dataset, config, named), GLUE_TASKS.get(config or "")
    in_all = set.intersection(*(set(part.column_names) for part in data.values()))
    return data, known if known and in_all.issuperset((*known.texts, str(known.label))) else None


def evaluation_split(data: DatasetDict, known: Task | None, trains: bool) -> str | None:
    """The split to evaluate on; `None` where it has to be held out of the train split."""
    if trains and "train" not in data:
        refuse("splits", list(data), "with one called train, to learn from")
    names = (*([known.evaluation_split] if known else []), *EVALUATION)
    found = next((name for name in names if name in data), None)
    if found is None and "train" not in data:
        return (
            next(iter(data)) if len(data) == 1 else refuse("splits", list(data), "with validation or test, or --split")
        )
    return found


def read_labels(
    task: Task, column: LabelColumn, problem_type: str | None, label_form: str | None,
    model: PFBerxitForSequenceClassification | None,
) -> Task:  # fmt: skip
    """The task with what its labels show: form, names of the outputs (a saved model's own), problem type, metric."""
    labels, name = task.labels, task.label
    if model is not None:
        labels = tuple(label_names(model.config))
        own = problem_type_of(model.config)
        if model.config.problem_type is None and column.is_list:
            own = MULTI_LABEL  # such a model takes its problem type from the labels of a batch
        if problem_type not in (None, own):
            refuse("problem_type", problem_type, f"the model's, {own}")
        problem_type = own
    form = read_form(column, problem_type, label_form, len(labels) or None)
    if isinstance(name, tuple) and labels:
        name = labels if sorted(name) == sorted(labels) else refuse("label", name, f"the model's, {', '.join(labels)}")
    same = task.problem_type == PROBLEM_TYPES[form]
    return replace(
        task, label=name, labels=labels or read_names(column, form), form=form, problem_type=PROBLEM_TYPES[form],
        metric=task.metric if same else METRIC_OF[PROBLEM_TYPES[form]],
    )  # fmt: skip


def encode(task: Task, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> Dataset:
    """Tokens and `labels`, ready for `Trainer`; texts are cut to `max_length` tokens, and how many were is said.

    Raises:
        ValueError: a row without a text, or with a label that is none of the task's; by its number.
    """
    labels = targets(task, data, "the rows")
    encoded = encode_texts(data, task.texts, tokenizer, max_length, f"Tokenising {task.name}")
    return encoded.add_column("labels", labels)


def targets(task: Task, data: Dataset, split: str) -> list[Any]:
    """The target of every row: a class id, a value, or a list of 0.0 and 1.0."""
    return read_targets(checked_labels(task, data, split), task.form, task.labels)


def checked_labels(task: Task, data: Dataset, split: str) -> LabelColumn:
    """The labels of a split; refuses a row without a text or a label."""
    check_split(data, task.texts, task.label, split)
    return label_column(data, task.label, split, task.separator)
