"""A folder of answers that grows part by part: what is a part, which are written, and when the folder is whole.

A part is some consecutive rows of one Parquet file, and its answers are one file that appears in one move. So it does
not matter who writes it or how often it is begun: whoever comes second finds it there, or replaces it by the same rows.
While the folder grows it is called `answers.part`, and `answers.part.json` says which run it is of.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..model.persistence import replacing
from ..model.validation import refuse
from .files import reading
from .outputs import check_same_run

ABOUT = b"pfberxit"  # in the metadata of a written part: what was counted while it was answered


@dataclass(frozen=True)
class Part:
    """Rows `start` to `start + rows` of a Parquet file; `name` is that of the file their answers are in."""

    name: str
    file: str
    start: int
    rows: int

    def read(self) -> pa.Table:
        """The rows, checked to be what their types say.

        Raises:
            OSError: the file is malformed, or a string in it is not UTF-8.
        """
        with reading(Path(self.file)), pq.ParquetFile(self.file) as file:
            groups, before, first = [], 0, self.start
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                if before + size <= self.start:
                    first -= size
                elif before < self.start + self.rows:
                    groups.append(group)
                before += size
            rows = file.read_row_groups(groups, use_threads=False).slice(first, self.rows)
            rows.validate(full=True)
        return rows


class GrowingFolder:
    """A folder with one Parquet file for each part.

    Args:
        path: where the whole folder will be.
        run: values of JSON that make up a run; only the same run goes on with a folder.

    Raises:
        ValueError: the folder is there, or a beginning of it that is of another run.
    """

    def __init__(self, path: str | os.PathLike, parts: Sequence[Part], run: dict[str, Any]) -> None:
        self.path, self.parts = Path(path).absolute(), list(parts)
        self.growing, self.state = (Path(f"{self.path}.part{ending}") for ending in ("", ".json"))
        self.run = json.loads(json.dumps(run))
        if self.path.exists():
            refuse("output", str(path), "a folder that is not there yet; nothing is overwritten")
        if self.state.exists():
            check_same_run(self.path, self.growing, json.loads(self.state.read_text(encoding="utf-8")), self.run)
        elif self.growing.exists():
            refuse("output", str(path), f"another: {self.growing} is there, and not of this command")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.state) as draft:
                draft.write_text(json.dumps(self.run, indent=1), encoding="utf-8")
        self.growing.mkdir(exist_ok=True)

    def missing(self) -> list[Part]:
        """The parts that are not written yet."""
        written = {entry.name for entry in os.scandir(self.growing)}
        return [part for part in self.parts if part.name not in written]

    def finish(self) -> None:
        """Give the whole folder its name, without drafts of writers that were killed.

        Raises:
            OSError: a part is missing or has another number of rows; the folder keeps its old name.
        """
        for part in self.parts:
            if (found := about(self.growing / part.name)["rows"]) != part.rows:
                raise OSError(f"{self.growing / part.name}: has {found} rows instead of {part.rows}; delete it.")
        names = {part.name for part in self.parts}
        for entry in list(os.scandir(self.growing)):
            if entry.name not in names:
                os.unlink(entry)
        os.replace(self.growing, self.path)
        self.state.unlink()


def write_part(path: Path, rows: pa.Table, counted: dict[str, int]) -> None:
    """Write a part's file in one move, with what was counted on the way."""
    with replacing(path) as draft:
        pq.write_table(rows.replace_schema_metadata({ABOUT: json.dumps(counted)}), draft)


def about(path: Path) -> dict[str, int]:
    """What was counted while a part was answered, and its `rows`."""
    with reading(path):
        found = pq.read_metadata(path)
    return {**json.loads((found.metadata or {}).get(ABOUT, b"{}")), "rows": found.num_rows}
