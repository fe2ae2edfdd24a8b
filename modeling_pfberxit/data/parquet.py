"""Parquet files as a source of rows that is cut into parts, without reading more than their bytes and footers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from ..model.persistence import sha256_of
from ..model.validation import refuse, whole
from .columns import choose_texts
from .files import Row, kind_of, read_parquet, reading
from .parts import Part
from .readers import local_files
from .survey import Source, Survey, files_of


def open_parquet(dataset: str, *, text: str | None = None, pair: str | None = None, split: str | None = None,
                 rows_per_part: int) -> tuple[Source, list[Part]]:  # fmt: skip
    """Parquet files as a source with its parts; nothing but their bytes and footers is read.

    Args:
        dataset: a file, a folder or a glob of them, `split`, `text` and `pair` as `open_rows` takes them.

    Raises:
        ValueError, OSError: it has other files, no rows, or files with different columns; as `open_rows`.
    """
    found = local_files(dataset, None, [name for name in (text, pair) if name])
    files = files_of(found, split) if found else []
    if not files or any(kind_of(file) != ".parquet" for file in files):
        refuse("dataset", dataset, "a file, a folder or a glob of Parquet files")
    schema, parts = one_schema(files), parts_of(files, rows_per_part)
    if not parts:
        refuse("dataset", dataset, "one with rows; this one is empty")
    names = choose_texts(Features({each.name: Value(kind_of_column(each.type)) for each in schema}), text, pair, None)
    survey = Survey(sum(part.rows for part in parts), sha256_of(*files), schema.names)
    return Source(lambda: rows_in(files), names, survey), parts


def rows_in(files: Sequence[Path]) -> Iterator[Row]:
    """All rows of the files, one after the other."""
    for file in files:
        yield from read_parquet(file)


def one_schema(files: Sequence[Path]) -> pa.Schema:
    """The columns that all files have."""
    schemas = []
    for file in files:
        with reading(file):
            schemas.append(pq.read_schema(file).remove_metadata())
    for file, schema in zip(files, schemas):
        if schema != schemas[0]:
            found, allowed = (", ".join(f"{each.name}: {each.type}" for each in one) for one in (schema, schemas[0]))
            refuse(f"columns of {file.name}", found, f"those of {files[0].name}, {allowed}")
    return schemas[0]


def kind_of_column(kind: pa.DataType) -> str:
    """How `choose_texts` tells columns that may hold texts from others."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "string" if texts else "null"


def parts_of(files: Sequence[Path], rows: int) -> list[Part]:
    """All rows of the files in their order, in parts of `rows` each; the last part of a file may have fewer."""
    whole(1)("rows_per_part", rows)
    spans = [(file, start, min(rows, size - start)) for file, size in sizes(files) for start in range(0, size, rows)]
    return [Part(f"part-{number:06}.parquet", str(file), start, n) for number, (file, start, n) in enumerate(spans)]


def sizes(files: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Each file and how many rows it has."""
    for path in files:
        with reading(path):
            yield path.absolute(), pq.read_metadata(path).num_rows
