"""From a file, a folder or a Hub id to the splits of a data set, with nothing guessed about their columns.

Local files are read split by split, so that one without a column does not take the others with it. CSV and TSV are read
strictly: a header of different names, as many cells in every row, only an empty cell is a missing value ("None" and
"NA" are words). A column of a CSV holds numbers or booleans where every cell is one, else strings.
"""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_dataset_builder

from ..model.validation import refuse

HELD_OUT, HELD_OUT_SEED = 0.2, 0  # of a data set with no split to evaluate on
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
REAL = re.compile(r"-?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?")  # "007" is a name
NO_NUMBER = ("nan", "na", "n/a", "none", "null")


def read_splits(dataset: str, config: str | None) -> DatasetDict:
    """The splits of one data file (all its rows as `train`), of a folder, or of a data set on the Hub.

    Raises:
        ValueError, OSError: it is not there, is empty or cannot be read; one line says why.
    """
    path = Path(dataset)
    is_file = path.suffix.lower() in READERS and not path.is_dir()
    if is_file and config is not None:
        refuse("config", config, f"left out for a single file, {path.name}")
    try:
        if is_file:
            return DatasetDict(train=read_file(path))
        return read_folder(path, config) if path.is_dir() else load_dataset(dataset, config)
    except Exception as error:  # readers raise many kinds
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise OSError(f"dataset={dataset!r}, config={config!r}: could not be loaded ({reason}).") from error


def read_folder(folder: Path, config: str | None) -> DatasetDict:
    """The splits of a folder as `load_dataset` sees them, by file names or by what its README declares."""
    builder = load_dataset_builder(str(folder), config)
    files = {str(split): [Path(file) for file in names] for split, names in (builder.config.data_files or {}).items()}
    if not files or {file.suffix.lower() for names in files.values() for file in names} - set(READERS):
        return load_dataset(str(folder), config)
    splits = {split: concatenate_datasets([read_file(file) for file in names]) for split, names in files.items()}
    declared = builder.info.features
    return DatasetDict({split: part.cast(declared) if declared else part for split, part in splits.items()})


def read_file(path: Path) -> Dataset:
    """The rows of one CSV, TSV, JSON, JSON Lines or Parquet file; there is at least one."""
    with open(path, "rb") as file:
        rows = READERS[path.suffix.lower()](path) if file.read(4096).strip() else ()
    if not len(rows):
        raise ValueError(f"{path.name} is empty: a file with rows is needed")
    return rows


def read_table(path: Path, separator: str = ",") -> Dataset:
    """A CSV with a header; quotes as RFC 4180 has them."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines, rows = csv.reader(file, delimiter=separator, strict=True), []
        try:
            for row in filter(None, lines):
                rows.append(row)
                if len(row) != len(rows[0]):
                    raise csv.Error(f"{len(row)} cells under a header of {len(rows[0])}")
        except csv.Error as error:
            raise ValueError(f"{path.name}, line {lines.line_num}: {error}") from error
    header, *rows = rows
    if len(set(header)) < len(header):
        raise ValueError(f"{path.name}: columns {header} must have different names")
    return Dataset.from_dict({name: typed([row[i] for row in rows]) for i, name in enumerate(header)})


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
    """What a data set is called: the last part of its id or path, of a file without its ending."""
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
    ".json": lambda path: Dataset.from_json(str(path)),
    ".jsonl": lambda path: Dataset.from_json(str(path)),
    ".parquet": lambda path: Dataset.from_parquet(str(path)),
}
