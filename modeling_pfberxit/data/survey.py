"""Rows as their files have them, one after the other, and what a first pass over them finds: count, columns, a hash.

The pass checks every row, so that nothing is wrong in the middle of hours of work, and keeps none.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Features, Value

from ..model.validation import refuse
from .columns import choose_texts
from .files import Row, rows_of
from .readers import local_files
from .texts import choose_split, read_any


@dataclass
class Survey:
    """What is known of rows that were read once.

    Args:
        sha256: of all columns of all rows in their order.
        columns: all that occur, in the order of their first row.
        odd: by column, its first value that is no string, and that row's number, from 0.
    """

    rows: int = 0
    sha256: str = ""
    columns: list[str] = field(default_factory=list)
    odd: dict[str, tuple[int, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again, and their columns of text.

    Args:
        read: begins anew with every call.
        names: one column, or two for pairs.
    """

    read: Callable[[], Iterator[Row]]
    names: tuple[str, ...]
    survey: Survey


def open_rows(
    dataset: str, config: str | None = None, *, text: str | None = None, pair: str | None = None,
    split: str | None = None,
) -> Source:  # fmt: skip
    """The rows of a data set in their order; cells of CSV and TSV stay the strings they are.

    Args:
        dataset, config, text, pair, split: as `load_texts` takes them.

    Raises:
        ValueError, OSError: as there; a text that is no string, by its row. Rows without a text are let through.
    """
    read = reader(dataset, config, split, [name for name in (text, pair) if name])
    survey = surveyed(read())
    if not survey.rows:
        refuse("dataset", dataset, "one with rows; this one is empty")
    names = choose_texts(Features({name: Value("string") for name in survey.columns}), text, pair, None)
    for name in names:
        if name in survey.odd:
            row, value = survey.odd[name]
            refuse(f"{name}[{row}]", value, f"a string (row {row}, counted from 0)")
    return Source(read, names, survey)


def reader(dataset: str, config: str | None, split: str | None, named: list[str]) -> Callable[[], Iterator[Row]]:
    """A function that reads the rows of a split from their first to their last."""
    files = None if dataset == "support_desk" else local_files(dataset, config, named)
    if files is None:
        _, rows = choose_split(read_any(dataset, config), split)
        return lambda: iter(rows)
    paths = files_of(files, split)
    return lambda: rows_of(paths)


def files_of(files: dict[str, list[Path]], split: str | None) -> list[Path]:
    """The files of the split that is named, of the only one, or of `all`."""
    if split is None and len(files) == 1:
        split = next(iter(files))
    if split != "all" and split not in files:
        refuse("split", split, f"one of {', '.join(files)}, or all")
    return list(chain.from_iterable(files.values())) if split == "all" else files[split or ""]


def surveyed(rows: Iterable[Row]) -> Survey:
    """Read all rows once."""
    found, digest, columns = Survey(), hashlib.sha256(), dict[str, None]()
    for number, row in enumerate(rows):
        digest.update(in_utf8(row, number))
        columns.update(dict.fromkeys(row))
        found.rows = number + 1
        for name, value in row.items():
            if value is not None and not isinstance(value, str):
                found.odd.setdefault(name, (number, value))
    found.sha256, found.columns = digest.hexdigest(), list(columns)
    return found


def in_utf8(row: Row, number: int) -> bytes:
    """A row as JSON; refuses half of a surrogate pair, which JSON can escape and no file of answers can hold."""
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        return refuse(f"row {number}", text[error.start : error.end], "characters of UTF-8 (rows counted from 0)")
