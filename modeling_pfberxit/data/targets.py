"""The names of a model's outputs, their order, and the target of every row.

Classes are in the order of `ClassLabel`, by number where all are numbers, else alphabetically. Whole numbers are
their own names ("10", "20"), so 0 to n-1 keep their places; ids in lists that begin at 0 are places from 0 to the
highest, also those that no row has. Where the outputs' names are no numbers (those of a saved model, mostly), whole
numbers are ids. Booleans are named "False" and "True".
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from ..model.validation import refuse
from .labels import CLASS, LISTS, NUMBER, VALUE, VECTORS, LabelColumn, unlike_lists, unlike_vectors

IGNORED = -100  # what losses of `torch` and `transformers` pass over


def read_names(column: LabelColumn, form: str) -> tuple[str, ...]:
    """The outputs' names in their order, from the labels of the train split."""
    if form == VALUE:
        return (str(column.name),)
    if column.names:
        return column.names
    if form == VECTORS:
        return column.name if isinstance(column.name, tuple) else tuple(map(str, range(len(column.values[0]))))
    if column.holds == "whole number" and form == CLASS and IGNORED in column.values:
        column.refuse(column.values.index(IGNORED), f"a class: {IGNORED} marks rows that have none")
    values = column.values if form == CLASS else [value for row in column.values for value in row]
    names = sorted({name_of(value) for value in values})
    if form == LISTS and column.holds == "whole number" and "0" in names:
        return tuple(map(str, range(max(values) + 1)))
    if len({name.strip() for name in names}) < len(names):
        refuse(f"labels of {column.name}", names, "names that differ by more than the space around them")
    if all(NUMBER.fullmatch(name) for name in names):
        names = sorted(names, key=float)
    if len(names) < 2 and form == CLASS or not names:
        refuse(f"labels of {column.name}", names, f"at least two; {column.split} has no more")
    return tuple(names)


def read_targets(column: LabelColumn, form: str, labels: Sequence[str]) -> list[Any]:
    """The target of every row for a model with these outputs: a class id, a value, or a list of 0.0 and 1.0.

    Raises:
        ValueError: a label that is none of the outputs, by row, value and names.
    """
    if column.is_list is not (form in (LISTS, VECTORS)):
        refuse(f"label of {column.split}", column.kind, "lists" if not column.is_list else "no lists")
    if form == VALUE:
        return [_value(column, row) for row in range(len(column.values))]
    if form == VECTORS:
        if (row := unlike_vectors(column, len(labels))) is not None:
            column.refuse(row, f"{len(labels)} entries of 0 and 1, one for every label")
        return [list(map(float, each)) for each in column.values]
    ids, index = id_names(column, labels), {name: number for number, name in enumerate(labels)}
    if column.holds == "bool":
        index = {name.capitalize(): number for name, number in index.items()}
    if form == LISTS and (row := unlike_lists(column)) is not None:
        column.refuse(row, "a list of different labels")
    rows = [[value] for value in column.values] if form == CLASS else column.values
    found = [[index.get(name_of(value, ids), -1) for value in values] for values in rows]
    for row, numbers in enumerate(found):
        if -1 in numbers:
            _refuse_unknown(column, row, labels)
    if form == CLASS:
        return [number for (number,) in found]
    return [[float(number in numbers) for number in range(len(labels))] for numbers in map(set, found)]


def id_names(column: LabelColumn, labels: Sequence[str]) -> tuple[str, ...]:
    """The names that whole numbers of a column stand for, by id; empty where each number is its own name."""
    nameless = [f"{i}" for i in range(len(labels))], [f"LABEL_{i}" for i in range(len(labels))]
    if column.names and not (list(labels) in nameless and len(column.names) == len(labels)):
        return column.names
    return () if any(NUMBER.fullmatch(name) for name in labels) else tuple(labels)


def name_of(value: Any, ids: Sequence[str] = ()) -> str:
    """A class's name: its value as text, `1.0` as "1"; of a whole number its entry in `ids`, where there is one."""
    if isinstance(value, (bool, str)):
        return str(value)
    number = int(value) if float(value).is_integer() else value
    return ids[number] if ids and number in range(len(ids)) else str(number)


def check_alike(first: LabelColumn, other: LabelColumn, labels: Sequence[str]) -> None:
    """Refuse a split that has numbers where another has names: that these are ids of the names is not certain."""
    if first.holds == "string" and other.holds == "whole number" and not other.names and id_names(other, labels):
        refuse(f"type of {other.name} in {other.split}", other.kind, f"{first.kind}, as in {first.split}")


def shown(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, not more than fit."""
    return ", ".join(names[:most]) + (f" … ({len(names)} in all)" if len(names) > most else "")


def _refuse_unknown(column: LabelColumn, row: int, labels: Sequence[str]) -> NoReturn:
    if all(value == -1 for value in column.values):
        column.refuse(row, f"a label: all rows of {column.split} have -1, as where labels are withheld")
    column.refuse(row, f"one of the known labels {shown(labels)}")


def _value(column: LabelColumn, row: int) -> float:
    value = column.values[row]
    if isinstance(value, bool) or isinstance(value, str) and not NUMBER.fullmatch(value):
        column.refuse(row, "a number")
    return float(value)
