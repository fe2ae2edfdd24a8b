"""Rows of files, one after the other: CSV, TSV, JSON Lines, JSON, Parquet and plain text, of any size.

All but Parquet may be packed by gzip (`.csv.gz`). No file is held in memory as a whole. CSV and TSV are read strictly:
a header of different names, as many cells in every row, only an empty cell is a missing value ("None" and "NA" are
words). What types columns have is decided in `arrow`.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..model.validation import refuse

Row = dict[str, Any]
BLOCK, CHUNK = 1 << 20, 4096  # characters of a JSON file that are read at once; rows that are worked on together
MOST = 1 << 25  # characters of these rows: their number alone would not bound what documents take
NUMBER = 32  # characters that a number takes the room of
AT_ONCE = 512  # rows of a Parquet file that are decoded together, at most
TEXT = "text"  # the column of a plain text file
PARQUET, PACKED = ".parquet", ".gz"
csv.field_size_limit((1 << 31) - 1)  # a document in a cell may be longer than the module's 128 KiB


def rows_of(paths: Sequence[Path]) -> Iterator[Row]:
    """All rows of the files in their order; cells of CSV and TSV as they are written, an empty one as `None`.

    Raises:
        ValueError, OSError: a file that is malformed or not in UTF-8, by its line where it has lines.
    """
    for path in paths:
        yield from ROWS[kind_of(path)](path)


def kind_of(path: Path) -> str:
    """The ending of a file's name that says how it is read, in front of `.gz`; of `part.csv.part` none."""
    kind, within = path.suffix.lower(), Path(path.stem).suffix.lower()
    return within if kind == PACKED and within != PARQUET else kind


def opened(path: Path, newline: str | None = None) -> IO[str]:
    """A file of text in UTF-8, unpacked while it is read if it is packed."""
    return opener(path)(path, "rt", encoding="utf-8-sig", newline=newline)


def opener(path: Path) -> Callable[..., IO]:
    """What opens a file: `gzip.open` where its name says that it is packed, else `open`."""
    return gzip.open if path.suffix.lower() == PACKED else open


def chunks(rows: Iterable[Row], size: int = CHUNK) -> Iterator[list[Row]]:
    """Lists of `size` rows each, of fewer where these have about `MOST` characters; the last may be shorter."""
    chunk, room = list[Row](), MOST
    for row in rows:
        chunk.append(row)
        room -= sum(map(size_of, row.values()))
        if len(chunk) == size or room <= 0:
            yield chunk
            chunk, room = [], MOST
    if chunk:
        yield chunk


def size_of(value: Any) -> int:
    """About how many characters' memory a cell takes, with all that stands in it: "four" -> 4."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + size_of(within) for name, within in value.items())
    return sum(map(size_of, value)) if isinstance(value, (list, tuple)) else NUMBER


@contextmanager
def reading(path: Path, place: Callable[[], str] = str) -> Iterator[None]:
    """Turn what parsers raise in the block into one line that names the file and, by `place()`, where in it."""
    try:
        yield
    except UnicodeDecodeError as error:
        line, byte = broken_line(path)
        refuse(f"{path.name}, line {line}", byte, f"UTF-8; `iconv -t UTF-8` converts a file ({error.reason})")
    except (csv.Error, json.JSONDecodeError, pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise OSError(
            f"dataset={str(path)!r}{place()}: could not be loaded ({' '.join(str(error).split())})."
        ) from error


def broken_line(path: Path) -> tuple[int, bytes]:
    """The number of the first line that is not UTF-8, from 1, and its first byte that is not."""
    with opener(path)(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return number, line[error.start : error.start + 1]
    return number, line[-1:]  # a character that the end of the file cuts off


SEPARATORS = {".csv": ",", ".tsv": "\t"}  # of files with a header, by their ending


def header_of(path: Path) -> list[str]:
    """The first line of a CSV or TSV; of other files, whose columns have no such place, nothing."""
    if (separator := SEPARATORS.get(kind_of(path))) is None:
        return []
    with opened(path, newline="") as file, reading(path):
        return next(filter(None, csv.reader(file, delimiter=separator, strict=True)), [])


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a CSV or TSV with a header; quotes as RFC 4180 has them."""
    with opened(path, newline="") as file:
        lines = csv.reader(file, delimiter=SEPARATORS[kind_of(path)], strict=True)
        with reading(path, lambda: f", line {lines.line_num}"):
            header = distinct(path, next(filter(None, lines), []))
            for cells in filter(None, lines):
                if len(cells) != len(header):
                    allowed = f"{len(header)} cells, as many as the header has"
                    refuse(f"{path.name}, line {lines.line_num}", cells, allowed)
                yield {name: cell or None for name, cell in zip(header, cells)}


def distinct(path: Path, names: list[str]) -> list[str]:
    """The names of a file's columns, if no two are the same."""
    return (
        names
        if len(set(names)) == len(names)
        else refuse(f"columns of {path.name}", names, "columns with different names")
    )


def read_json_lines(path: Path) -> Iterator[Row]:
    """The rows of a file with a JSON object on every line; blank lines are none."""
    number = 0
    with opened(path, newline="\n") as file, reading(path, lambda: f", line {number}"):
        for line in file:
            number += 1
            if line.strip():
                row = json.loads(line, object_pairs_hook=without_twins)
                yield as_object(f"{path.name}, line {number}", row)


def read_json(path: Path) -> Iterator[Row]:
    """The rows of a JSON file: a list of objects, or objects one behind the other."""
    decoder, number = json.JSONDecoder(object_pairs_hook=without_twins), 0
    with opened(path) as file, reading(path, lambda: f", row {number}"):
        text, at, in_list = "", 0, None
        while True:
            while at < len(text) and text[at] in " \n\r\t,":
                at += 1
            if at == len(text):
                if text := file.read(BLOCK):
                    at = 0
                elif in_list:
                    raise json.JSONDecodeError("the list has no end", "", 0)
                else:
                    return
            elif in_list is None:
                in_list = text[at] == "["
                at += in_list
            elif in_list and text[at] == "]":
                return
            else:
                try:
                    row, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError:  # cut off by the end of the block, or broken
                    if not (more := file.read(BLOCK)):
                        raise
                    text, at = text[at:] + more, 0
                    continue
                yield as_object(f"{path.name}, row {number}", row)
                number += 1


def without_twins(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object whose names differ."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise json.JSONDecodeError(
            f"a name stands twice in an object with {', '.join(name for name, _ in pairs)}", "", 0
        )
    return row


def as_object(place: str, row: Any) -> Row:
    """A row that is a JSON object."""
    return row if isinstance(row, dict) else refuse(place, row, "a JSON object, with columns by name")


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file."""
    with reading(path), pq.ParquetFile(path, buffer_size=BLOCK) as file:  # without, a whole row group's bytes
        for number in range(file.num_row_groups):  # asked for all of them, it would read ahead
            group = file.metadata.row_group(number)
            fitting = MOST * group.num_rows // max(group.total_byte_size, 1)
            size = max(1, min(fitting, AT_ONCE))
            for batch in file.iter_batches(size, row_groups=[number], use_threads=False):
                yield from batch.to_pylist()


def read_lines(path: Path) -> Iterator[Row]:
    """A text for every line of a plain text file, blank lines too."""
    with opened(path, newline="\n") as file, reading(path):
        for line in file:
            yield {TEXT: line.rstrip("\r\n") or None}


ROWS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": read_table,
    ".tsv": read_table,
    ".json": read_json,
    ".jsonl": read_json_lines,
    PARQUET: read_parquet,
    ".txt": read_lines,
}
