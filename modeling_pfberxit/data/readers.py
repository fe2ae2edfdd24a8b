"""The splits of a data set, read from a file, a folder or the Hub. What columns mean is not decided here.

Local files are read split by split, so that one without a column does not take the others with it. CSV and TSV are read
strictly: a header of different names, as many cells in every row, only an empty cell is a missing value ("None" and
"NA" are words). A column of a CSV holds numbers or booleans where every cell is one, else strings.
"""

import csv
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder

from ..model.validation import refuse

HELD_OUT, HELD_OUT_SEED = 0.2, 0  # of a data set with no split to evaluate on
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
REAL = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")  # not "007", which is a name
NO_NUMBER = ("nan", "na", "n/a", "none", "null")


def read_splits(dataset: str, config: str | None) -> DatasetDict:
    """The splits of one data file (all its rows as `train`), of a folder, or of a data set on the Hub.

    Raises:
        ValueError, OSError: it is empty or malformed; it is not there or cannot be read.
    """
    path = Path(dataset)
    if path.is_dir():
        return read_folder(path, config)
    if path.suffix.lower() not in READERS:
        if path.is_file():
            refuse("dataset", dataset, f"a file that ends in {', '.join(READERS)}, a folder or a Hub id")
        with loading(dataset, config):
            return load_dataset(dataset, config)
    if config not in (None, "default"):
        refuse("config", config, f"left out for a single file, {path.name}")
    return DatasetDict(train=read_file(path))


def read_folder(folder: Path, config: str | None) -> DatasetDict:
    """The splits of a folder as `load_dataset` finds them, by file names or by its README's metadata."""
    with loading(str(folder), config):
        builder = load_dataset_builder(str(folder), config)
    splits = {str(name): [Path(file) for file in files] for name, files in (builder.config.data_files or {}).items()}
    if not splits or {file.suffix.lower() for files in splits.values() for file in files} - set(READERS):
        with loading(str(folder), config):
            return load_dataset(str(folder), config)
    parts = {name: [read_file(file) for file in files] for name, files in splits.items()}
    with loading(str(folder), config):
        whole = {name: concatenate_datasets(part) for name, part in parts.items()}
        declared = builder.info.features
        return DatasetDict({name: part.cast(declared) if declared else part for name, part in whole.items()})


def read_file(path: Path) -> Dataset:
    """The rows of one CSV, TSV, JSON, JSON Lines or Parquet file; there is at least one."""
    with loading(str(path)), open(path, "rb") as file:
        empty = file.read(4096).strip() in (b"", b"[]", b"{}")
    if empty or not len(rows := READERS[path.suffix.lower()](path)):
        refuse("dataset", str(path), "a file with rows; this one is empty")
    return rows


@contextmanager
def loading(dataset: str, config: str | None = None) -> Iterator[None]:
    """Turn any error of the block, of which readers raise many kinds, into one `OSError` of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise OSError(f"dataset={dataset!r}, config={config!r}: could not be loaded ({reason}).") from error


def read_table(path: Path, separator: str = ",") -> Dataset:
    """A CSV with a header; quotes as RFC 4180 has them."""
    rows: list[tuple[int, list[str]]] = []
    with loading(str(path)), open(path, encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=separator, strict=True)
        rows.extend((lines.line_num, row) for row in lines if row)
    (_, header), *body = rows
    if len(set(header)) < len(header):
        refuse(f"columns of {path.name}", header, "columns with different names")
    for line, row in body:
        if len(row) != len(header):
            refuse(f"{path.name}, line {line}", row, f"{len(header)} cells, as many as the header has")
    return Dataset.from_dict({name: typed([row[i] for _, row in body]) for i, name in enumerate(header)})


def load_file(kind: str, path: Path) -> Dataset:
    """A file that `datasets` reads."""
    with loading(str(path)):
        return load_dataset(kind, data_files=str(path), split="train")


def typed(cells: list[str]) -> list[Any]:
    """Whole numbers, numbers or booleans if all cells are, else strings; an empty cell becomes `None`.

    Among numbers, a word for "none" is no class but a missing value: ["0.5", "nan"] -> [0.5, None].
    """
    filled = [cell for cell in cells if cell != ""]
    numbers = [cell for cell in filled if cell.lower() not in NO_NUMBER]
    if numbers and all(map(REAL.fullmatch, numbers)):
        convert = int if all(map(WHOLE.fullmatch, numbers)) else float
        return [None if cell == "" or cell.lower() in NO_NUMBER else convert(cell) for cell in cells]
    if filled and all(cell.lower() in ("true", "false") for cell in filled):
        return [None if cell == "" else cell.lower() == "true" for cell in cells]
    return [None if cell == "" else cell for cell in cells]


def name_of(dataset: str) -> str:
    """A data set's name: the last part of its id or path, of a file without its ending."""
    path = Path(os.path.abspath(dataset))
    return path.stem if path.suffix.lower() in READERS else path.name


def hold_out(rows: Dataset) -> DatasetDict:
    """A fifth of the rows, drawn with seed 0, as `validation`, the others as `train`: the same rows every time."""
    if len(rows) < 2:
        refuse("dataset", f"{len(rows)} row", "one with a split to evaluate on, or with rows enough to hold some out")
    parts = rows.train_test_split(HELD_OUT, seed=HELD_OUT_SEED)
    return DatasetDict(train=parts["train"], validation=parts["test"])


READERS: dict[str, Callable[[Path], Dataset]] = {
    ".csv": read_table,
    ".tsv": lambda path: read_table(path, "\t"),
    ".json": lambda path: load_file("json", path),
    ".jsonl": lambda path: load_file("json", path),
    ".parquet": lambda path: load_file("parquet", path),
}
