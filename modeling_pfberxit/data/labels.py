"""The *form* of a row's label: how it is written. A form is read off the data where that is certain, else refused.

    class     one class: a string, a boolean, a whole number, a `ClassLabel`; numbers 0.0, 1.0 … only if named
    lists     the labels a row has, by id or by name, also in one string with a separator
    vectors   a 0 or 1 for every label, in one column of lists or in a column for each
    value     a number to predict

The names of the classes and their order are not decided here but in `data.targets`.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from datasets import ClassLabel, Dataset, LargeList, List

from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.validation import refuse
from .columns import STRINGS

CLASS, LISTS, VECTORS, VALUE = "class", "lists", "vectors", "value"
PROBLEM_TYPES = {CLASS: SINGLE_LABEL, LISTS: MULTI_LABEL, VECTORS: MULTI_LABEL, VALUE: REGRESSION}
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a split as they are written, unchecked.

    Args:
        name: the column, or one for each label.
        kind: what its cells hold, or the entries of its lists: a name of `datasets.Value`, or "class label".
        names: of the ids of a `ClassLabel`.
        values: a row each; of several columns a tuple.
        split: for messages.
    """

    name: str | tuple[str, ...]
    kind: str
    names: tuple[str, ...]
    is_list: bool
    values: list[Any]
    split: str

    @property
    def holds(self) -> str:
        """The kind of a class's value: string, whole number, float, bool, or the column's own where no label can be."""
        if self.kind in STRINGS:
            return "string"
        families = {"int": "whole number", "uint": "whole number", "class label": "whole number", "float": "float"}
        return next((name for start, name in families.items() if self.kind.startswith(start)), self.kind)

    def refuse(self, row: int, allowed: str) -> NoReturn:
        """Refuse a row's label by its number and value."""
        name = self.name if isinstance(self.name, str) else ", ".join(self.name)
        refuse(f"{name}[{row}]", self.values[row], f"{allowed} (row {row} of {self.split}, counted from 0)")


def label_column(data: Dataset, name: str | tuple[str, ...], split: str, separator: str | None = None) -> LabelColumn:
    """The labels of a split; with a separator, the lists of names that strings are, an empty cell being an empty list.

    Raises:
        ValueError: a row without a label, by its number.
    """
    if isinstance(name, tuple):
        columns = [data[each][:] for each in name]
        for each, values in zip(name, columns):
            _refuse_all_but_bits(each, values, split)
        column = LabelColumn(name, "int64", (), True, list(zip(*columns)), split)
    else:
        feature, is_list = data.features[name], False
        if isinstance(feature, (List, LargeList)):
            feature, is_list = feature.feature, True
        named = isinstance(feature, ClassLabel)
        kind = "class label" if named else getattr(feature, "dtype", None) or type(feature).__name__
        column = LabelColumn(name, kind, tuple(feature.names) if named else (), is_list, data[name][:], split)
    if separator is not None:
        column = replace(
            column, kind=STRINGS[0], is_list=True, values=[cut(value, separator) for value in column.values]
        )
    for row, value in enumerate(column.values):
        if any(map(_missing, value if column.is_list and value is not None else [value])):
            column.refuse(row, "given: every row has a label")
    return column


def cut(value: Any, separator: str) -> list[str]:
    """The labels in a string: "a; b" -> ["a", "b"]; of an empty one none."""
    return [] if value is None or not str(value).strip() else [part.strip() for part in str(value).split(separator)]


def _refuse_all_but_bits(name: str, values: list[Any], split: str) -> None:
    for row, value in enumerate(values):
        if value not in (0, 1):
            refuse(f"{name}[{row}]", value, f"0 or 1, of a label's own column (row {row} of {split}, counted from 0)")


def read_form(column: LabelColumn, problem_type: str | None, label_form: str | None, outputs: int | None) -> str:
    """The form of the labels: the one that is certain, or the one named.

    Args:
        problem_type, label_form: as named by the user or the model, if at all.
        outputs: how many a saved model has, if there is one.

    Raises:
        ValueError: the form is not certain, or not the one named.
    """
    if column.is_list:
        form = _form_of_lists(column, label_form, outputs)
    else:
        form = _form_of_scalars(column, problem_type)
        if label_form is not None:
            refuse("label_form", label_form, f"left out: column {column.name} holds no lists")
    if problem_type not in (None, PROBLEM_TYPES[form]):
        refuse("problem_type", problem_type, f"{PROBLEM_TYPES[form]}, by what column {column.name} holds")
    return form


def _form_of_scalars(column: LabelColumn, problem_type: str | None) -> str:
    if column.holds not in ("string", "bool", "whole number", "float"):
        refuse(f"type of {column.name}", column.kind, "strings, booleans, numbers, or lists of them")
    numbers, broken = column.holds in ("whole number", "float"), None
    if column.holds == "string":
        _refuse_written_lists(column)
        numbers = all(NUMBER.fullmatch(value) for value in column.values)
        broken = next((i for i, value in enumerate(column.values) if "." in value), None) if numbers else None
    elif column.holds == "float":
        broken = next((i for i, value in enumerate(column.values) if not value.is_integer()), None)
    if problem_type == REGRESSION:
        return VALUE if numbers else refuse(f"type of {column.name}", column.kind, "numbers, for regression")
    if column.holds == "float" and problem_type == SINGLE_LABEL and broken is not None:
        column.refuse(broken, "a whole number, for classes")
    if column.holds == "float" and problem_type is None and broken is not None:
        return VALUE
    if problem_type is None and (column.holds == "float" or broken is not None):
        say = "problem_type='single_label_classification' or 'regression' (--problem-type)"
        refuse(str(column.name), column.values[broken or 0], f"named as a class or a value: {say}")
    return CLASS


def _refuse_written_lists(column: LabelColumn) -> None:
    for row, value in enumerate(column.values):
        if value.strip().startswith("[") and value.strip().endswith("]"):
            column.refuse(row, "no list written as text: save lists as JSON Lines or Parquet, or a column per label")


def _form_of_lists(column: LabelColumn, label_form: str | None, outputs: int | None) -> str:
    """The form of a column of lists: by its type, as named, or by the only one that all rows allow."""
    certain = {"string": LISTS, "bool": VECTORS, "float": VECTORS, "whole number": None}
    if column.holds not in certain:
        refuse(f"type of {column.name}", f"lists of {column.kind}", "lists of ids, of names, or of 0 and 1")
    form = VECTORS if isinstance(column.name, tuple) else LISTS if column.names else certain[column.holds]
    if form and label_form not in (None, form):
        refuse("label_form", label_form, f"{form}, by the type of column {column.name}")
    return form or label_form or _form_of_numbers(column, outputs)


def _form_of_numbers(column: LabelColumn, outputs: int | None) -> str:
    no_vector, no_list = unlike_vectors(column, outputs), unlike_lists(column)
    if no_vector is None and no_list is None:
        say = "label_form='lists' or 'vectors' says which (--label-form)"
        refuse(str(column.name), column.values[0], f"certain: lists of ids and vectors of 0 and 1 both fit; {say}")
    if no_vector is not None and no_list is not None:
        allowed = "a list of different ids, or in every row as many 0 and 1 as there are labels"
        column.refuse(max(no_vector, no_list), allowed)
    return LISTS if no_list is None else VECTORS


def unlike_vectors(column: LabelColumn, outputs: int | None = None) -> int | None:
    """The first row that is no vector of 0 and 1, as long as the others (or the outputs)."""
    length = outputs or len(column.values[0])
    return next((i for i, row in enumerate(column.values) if len(row) != length or set(row) - {0, 1} or not row), None)


def unlike_lists(column: LabelColumn) -> int | None:
    """The first row that names a label twice, or has an id below 0."""
    return next(
        (i for i, row in enumerate(column.values) if len(set(row)) < len(row) or any(_below_zero(x) for x in row)), None
    )


def _missing(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, float)
        and not math.isfinite(value)
        or isinstance(value, str)
        and not value.strip()
    )


def _below_zero(value: Any) -> bool:
    return not isinstance(value, str) and value < 0
