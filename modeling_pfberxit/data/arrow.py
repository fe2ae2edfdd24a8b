"""Rows of files as a `Dataset` on disk: a first pass finds the columns' types, a second one writes them.

A column of a CSV holds numbers or booleans where every cell is one, else strings; of JSON, what all its values are.
So a file of any size takes the memory of a chunk, and as much disk as its rows, until the process ends.
"""

import atexit
import glob
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from ..model.validation import refuse
from .files import ROWS, chunks, kind_of, reading, rows_of

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
REAL = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")  # not "007", which is a name
NO_NUMBER = ("nan", "na", "n/a", "none", "null")
TABLES = (".csv", ".tsv", ".txt")  # their cells are strings before they are read as something else
NUMBERS = count()


def read_files(paths: Sequence[Path]) -> Dataset:
    """The rows of one or several files with the same columns, memory-mapped; there is at least one row.

    Raises:
        ValueError, OSError: a file is empty, malformed, of other columns than the first, or types do not go together.
    """
    schema = schema_of(paths)
    file = scratch() / f"{next(NUMBERS)}.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches(paths, schema):
            writer.write_batch(batch)
    rows = Dataset.from_file(str(file))
    return rows if len(rows) else refuse("dataset", ", ".join(map(str, paths)), "a file with rows; this one is empty")


def batches(paths: Sequence[Path], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """All rows under a schema, a chunk at a time."""
    for chunk in chunks(rows_of(paths)):
        columns = [[value_of(row.get(each.name), each.type) for row in chunk] for each in schema]
        yield pa.record_batch([pa.array(*column) for column in zip(columns, schema.types)], schema=schema)


@cache
def scratch() -> Path:
    """A folder beside the caches of `datasets`, which is removed when the process ends; or later, if it is killed."""
    place = Path(datasets.config.HF_DATASETS_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    ours = f"pfberxit-{platform.node()}-"
    for left in place.glob(f"{glob.escape(ours)}*-*"):
        if is_over(left.name.removeprefix(ours).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{ours}{os.getpid()}-", dir=place))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def is_over(process: str) -> bool:
    """Whether a process of this machine, by its number, is known to have ended."""
    if os.name != "posix" or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)  # asks, sends nothing
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


# ---- types -----------------------------------------------------------------------------------------------------------


def schema_of(paths: Sequence[Path]) -> pa.Schema:
    """Names and types of all columns of the files, read once from end to end."""
    found = [of_parquet(path) for path in paths if kind_of(path) == ".parquet"]
    found += [of_objects(path) for path in paths if kind_of(path) in (".json", ".jsonl")]
    if tables := [path for path in paths if kind_of(path) in TABLES]:
        found.append(of_tables(tables))
    try:
        return pa.unify_schemas(found, promote_options="permissive")
    except pa.ArrowException as error:
        refuse("dataset", ", ".join(map(str, paths)), f"files whose columns have the same types ({error})")


def of_parquet(path: Path) -> pa.Schema:
    """The schema that a Parquet file states; a categorical column of `pandas` is one of its values."""
    with reading(path):
        stated = pq.read_schema(path)
    return pa.schema([each.with_type(as_values(each.type)) for each in stated], stated.metadata)


def as_values(kind: pa.DataType) -> pa.DataType:
    """The type that the values of a column have, however they are kept."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_string_view(kind) else kind


def of_objects(path: Path) -> pa.Schema:
    """The schema of a file of JSON objects."""
    whole = pa.schema([])
    for chunk in chunks(ROWS[kind_of(path)](path)):
        for name in dict.fromkeys(name for row in chunk for name in row):
            with reading(path, partial(str, f", column {name}")):
                kind = pa.array([row.get(name) for row in chunk]).type
                whole = pa.unify_schemas([whole, pa.schema({name: kind})], promote_options="permissive")
    return whole


def of_tables(paths: Sequence[Path]) -> pa.Schema:
    """The schema of files of cells, all with the same columns."""
    columns: dict[str, Cells] | None = None
    for path in paths:
        for row in ROWS[kind_of(path)](path):
            columns = {name: Cells() for name in row} if columns is None else columns
            if row.keys() != columns.keys():
                refuse(f"columns of {path.name}", list(row), f"those of {paths[0].name}, {', '.join(columns)}")
            for name, cell in row.items():
                columns[name].add(cell)
    return pa.schema({name: cells.type for name, cells in (columns or {}).items()})


@dataclass
class Cells:
    """What all cells of a column so far could be.

    Among numbers, a word for "none" is no class but a missing value: ["0.5", "nan"] -> [0.5, None].
    """

    numbers: bool = False  # one at least
    whole: bool = True
    real: bool = True
    flags: bool = True
    filled: bool = False

    def add(self, cell: str | None) -> None:
        """Take a cell into account."""
        if cell is None or self.filled and not (self.real or self.flags):
            return
        self.filled, word = True, cell.lower()
        self.flags = self.flags and word in ("true", "false")
        if self.real and word not in NO_NUMBER:
            self.numbers, self.real = True, REAL.fullmatch(cell) is not None
            self.whole = self.whole and self.real and WHOLE.fullmatch(cell) is not None

    @property
    def type(self) -> pa.DataType:
        """Whole numbers, numbers or booleans if all cells are, else strings."""
        if self.numbers and self.real:
            return pa.int64() if self.whole else pa.float64()
        return pa.bool_() if self.filled and self.flags else pa.string()


def value_of(cell: Any, kind: pa.DataType) -> Any:
    """A cell as a value of the column's type; what is no string stays as it is."""
    if not isinstance(cell, str):
        return cell
    if pa.types.is_boolean(kind):
        return cell.lower() == "true"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return None if cell.lower() in NO_NUMBER else int(cell) if pa.types.is_integer(kind) else float(cell)
    return cell
