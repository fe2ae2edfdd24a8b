"""A file of answers that grows chunk by chunk: whole rows only, and a killed run goes on where it stopped.

While it grows it is called `answers.csv.part`, and `answers.csv.part.json` says which run it is of and how far it is.
`answers.csv` appears when the last row is in it. What another run has written is never touched.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..model.persistence import replacing
from ..model.validation import refuse
from .files import Row

FORMATS = {".csv": ",", ".tsv": "\t", ".jsonl": None}


class GrowingFile:
    """Rows as CSV, TSV or JSON Lines, by the file's name.

    Args:
        path: where the whole file will be.
        columns: of the rows, in their order.
        run: values of JSON that make up a run; only the same run goes on with a file.

    Attributes:
        rows: how many it has.

    Raises:
        ValueError: the file is there, or a part of it that another run has begun.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], run: dict[str, Any]) -> None:
        self.path, self.columns = Path(path), list(columns)
        self.part, self.state = (Path(f"{path}.part{ending}") for ending in ("", ".json"))
        self.run = json.loads(json.dumps({**run, "columns": self.columns}))
        check_new(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows, size = self.resumed() if self.state.exists() and self.part.exists() else self.begun()
        with open(self.part, "r+b") as file:
            file.truncate(size)

    def begun(self) -> tuple[int, int]:
        """No row yet, and the size of the header."""
        if self.part.exists():
            refuse("output", str(self.path), f"another: {self.part} is there, and not of this command")
        self.part.write_bytes(b"" if self.separator is None else self.as_text([self.columns]))
        self.keep(0)
        return 0, self.part.stat().st_size

    def resumed(self) -> tuple[int, int]:
        """How many rows and bytes a former run of the same kind has written for sure."""
        kept = json.loads(self.state.read_text(encoding="utf-8"))
        check_same_run(self.path, self.part, kept["run"], self.run)
        if self.part.stat().st_size < kept["bytes"]:
            refuse("output", str(self.path), f"another: {self.part} is shorter than it was; delete it to begin anew")
        return kept["rows"], kept["bytes"]

    @property
    def separator(self) -> str | None:
        """Between cells; `None` in JSON Lines."""
        return FORMATS[self.path.suffix.lower()]

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; when this returns they are on disk, and stay there if the process is killed."""
        if self.separator is None:
            text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()
        else:
            text = self.as_text([in_cell(row.get(name)) for name in self.columns] for row in rows)
        with open(self.part, "ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.keep(self.rows + len(rows))

    def as_text(self, rows: Iterable[Sequence[str]]) -> bytes:
        """Lines of cells."""
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self.separator or ",").writerows(rows)
        return text.getvalue().encode()

    def keep(self, rows: int) -> None:
        """Write down how far the file is."""
        self.rows = rows
        with replacing(self.state) as draft:
            draft.write_text(json.dumps({"rows": rows, "bytes": self.part.stat().st_size, "run": self.run}, indent=1))

    def finish(self) -> None:
        """Give the whole file its name."""
        os.replace(self.part, self.path)
        self.state.unlink()


def check_new(path: str | os.PathLike) -> None:
    """Refuse an output whose name does not say how it is written, or that is there already."""
    if Path(path).suffix.lower() not in FORMATS:
        refuse("output", str(path), f"a file that ends in {', '.join(FORMATS)}")
    if Path(path).exists():
        refuse("output", str(path), "a file that is not there yet; nothing is overwritten")


def check_same_run(path: Path, part: Path, kept: dict[str, Any], run: dict[str, Any]) -> None:
    """Refuse an output that was begun by another run, and say what differs."""
    if other := [name for name in sorted({*kept, *run}) if kept.get(name) != run.get(name)]:
        refuse("output", str(path), f"another: {part} was begun with another {', '.join(other)}")


def in_cell(value: Any) -> str:
    """A value as a cell's text: nothing as an empty cell, what JSON has but strings as JSON, all else as it prints."""
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value)


def beside(columns: Sequence[str], own: Sequence[str]) -> dict[str, str]:
    """New names for columns of the input that are called like one of our own: label -> input_label."""
    renamed: dict[str, str] = {}
    for name in columns:
        new = name
        while new in own or new != name and (new in columns or new in renamed.values()):
            new = f"input_{new}"
        renamed[name] = new
    return renamed
