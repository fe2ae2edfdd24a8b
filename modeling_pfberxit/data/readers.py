"""The splits of a data set: a file, a folder, a glob, `-` for stdin, or the Hub. What columns mean is not said here.

How rows are read is in `files`, what types their columns have in `arrow`.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from glob import glob
from itertools import chain
from pathlib import Path

from datasets import DatasetDict, load_dataset, load_dataset_builder

from ..model.validation import refuse
from .arrow import read_files, scratch
from .columns import check_header
from .files import PACKED, PARQUET, ROWS, header_of, kind_of, opener, reading

STDIN = "-"
WILD = re.compile(r"[*?[]")
# Words in a file's name that say which split it belongs to, as `load_dataset` knows them.
SPLIT_WORDS = {
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
    "train": "train|training",
}  # fmt: skip


def read_splits(dataset: str, config: str | None, named: Sequence[str] = ()) -> DatasetDict:
    """The splits of a data set, memory-mapped.

    Args:
        dataset: a file or `-` (all rows are `train`), a glob or folder (splits by file names), or a Hub id.
        named: columns that the user has named, by which `-` is known to be a table.

    Raises:
        ValueError, OSError: it is empty or malformed; it is not there or cannot be read.
    """
    splits = local_files(dataset, config, named)
    if splits is None:
        with loading(dataset, config):
            return load_dataset(dataset, config)
    found = DatasetDict({name: read_files(paths) for name, paths in splits.items()})
    declared = declared_features(dataset, config)
    with loading(dataset, config):
        return found.cast(declared) if declared else found


def local_files(dataset: str, config: str | None, named: Sequence[str] = ()) -> dict[str, list[Path]] | None:
    """The files of each split that are read here; `None`: `load_dataset` reads them, from the Hub or a folder.

    Raises:
        ValueError, OSError: there is no such file, or one whose first line is no header.
    """
    splits = found_files(dataset, config, named)
    for path in chain.from_iterable((splits or {}).values()):
        check_header(header_of(path), named)
    return splits


def found_files(dataset: str, config: str | None, named: Sequence[str]) -> dict[str, list[Path]] | None:
    """`local_files` before their first lines are looked at."""
    path = Path(dataset)
    if path.is_dir():
        return folder_files(path, config)
    if dataset != STDIN and not path.is_file() and not WILD.search(dataset) and kind_of(path) not in ROWS:
        return None
    if path.is_file():
        readable(path)
    if config not in (None, "default"):
        refuse("config", config, f"left out for files, {dataset}")
    if dataset == STDIN:
        return {"train": [spooled(tuple(named))]}
    if path.exists() or not WILD.search(dataset):
        return {"train": [readable(path)]}
    splits: dict[str, list[Path]] = {}
    for each in sorted(Path(name) for name in glob(dataset, recursive=True) if os.path.isfile(name)):
        splits.setdefault(split_of(each.stem), []).append(readable(each))
    return splits or refuse("dataset", dataset, "a pattern that fits a file at least")


def readable(path: Path) -> Path:
    """The path of a file, if its name says how it is read and it is there."""
    if kind_of(path) not in ROWS:
        kinds = f"{', '.join(ROWS)} (or .csv.gz …)"
        refuse("dataset", str(path), f"a file that ends in {kinds}, a folder, a glob, - or a Hub id")
    if not path.is_file():
        raise OSError(f"dataset={str(path)!r}: could not be loaded (there is no such file).")
    return path


def split_of(stem: str) -> str:
    """The split that a file's name says it belongs to: dev-2.csv -> validation; `train` where it says nothing."""
    words = re.split(r"[-._ 0-9]+", stem.lower())
    return next((split for split, known in SPLIT_WORDS.items() if set(known.split("|")) & set(words)), "train")


def folder_files(folder: Path, config: str | None) -> dict[str, list[Path]] | None:
    """The files of a folder as `load_dataset` sorts them into splits, by names or by the README's metadata."""
    with loading(str(folder), config):
        files = load_dataset_builder(str(folder), config).config.data_files or {}
    splits = {str(name): [Path(file) for file in paths] for name, paths in files.items()}
    known = splits and all(kind_of(file) in ROWS for paths in splits.values() for file in paths)
    return splits if known else None


def declared_features(dataset: str, config: str | None) -> object | None:
    """The types of the columns that a folder's README declares, if it does."""
    if not os.path.isdir(dataset):
        return None
    with loading(dataset, config):
        return load_dataset_builder(dataset, config).info.features


@contextmanager
def loading(dataset: str, config: str | None = None) -> Iterator[None]:
    """Turn any error of the block, of which `datasets` raises many kinds, into one `OSError` of one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise OSError(f"dataset={dataset!r}, config={config!r}: could not be loaded ({reason}).") from error


@cache
def spooled(named: tuple[str, ...]) -> Path:
    """What stdin holds, in a file, so that it can be read twice.

    Parquet, JSON and what gzip has packed are known by their first bytes. Anything else is a CSV or TSV with a header
    if columns are named, else one text a line.
    """
    draft = scratch() / "stdin"
    with open(draft, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if is_packed(draft):
        draft = draft.rename(draft.with_suffix(PACKED))
    kind = sniffed(draft, named)
    if kind == PARQUET and draft.suffix == PACKED:
        refuse("dataset", STDIN, "Parquet as it is, not packed by gzip")
    return draft.rename(draft.with_suffix(kind + draft.suffix))


def is_packed(path: Path) -> bool:
    """Whether a file begins as those that gzip packs do."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def sniffed(path: Path, named: Sequence[str]) -> str:
    """The ending that a file without one should have, in front of `.gz`."""
    with reading(path), opener(path)(path, "rb") as file:
        start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PAR1"):
        return PARQUET
    if start[:1] in (b"{", b"["):
        return ".jsonl" if start[:1] == b"{" else ".json"
    if not named:
        return ".txt"
    header = start.partition(b"\n")[0].decode("utf-8", errors="replace")
    parts = [part.strip() for name in named for part in ([name] if name in header else name.split(","))]
    if missing := [name for name in parts if name not in header]:
        refuse("dataset", STDIN, f"a table with a header that has {', '.join(missing)}; its first line is {header!r}")
    return ".tsv" if "\t" in header else ".csv"


def name_of(dataset: str) -> str:
    """A data set's name: the last part of its id or path, of a file without its ending."""
    if dataset == STDIN:
        return "stdin"
    path = Path(os.path.abspath(dataset))
    within = path.with_suffix("") if path.suffix.lower() == PACKED else path
    name = within.stem if kind_of(path) in ROWS else path.name
    return WILD.sub("", name).strip("-._") or path.parent.name
