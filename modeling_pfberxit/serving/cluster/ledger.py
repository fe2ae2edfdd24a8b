"""Which answer was accepted for a request's id: the first that is offered; whoever offers later is told that one.

Ray copies this file's code into the process that keeps the ledger: it imports the standard library alone, so that the
process is small and, once it was killed, soon back.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from typing import NamedTuple

TABLE = """
CREATE TABLE IF NOT EXISTS accepted (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, asked TEXT, status INTEGER,
    headers TEXT, body BLOB, at REAL
)"""


class Kept(NamedTuple):
    """An accepted answer, and the hash of what was asked."""

    asked: str
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Ledger:
    """Accepted answers by the request's id, in a SQLite database.

    Args:
        path: of a file that outlives the process; default: in memory, so that a process that ends forgets.
        seconds: for which an answer is remembered; a retry that comes later is answered anew.
        kept: answers that are remembered at most, the newest; some hundred bytes each.
        clock: seconds that go on while the process does not run, as `time.time`.
    """

    def __init__(
        self, path: str | os.PathLike = ":memory:", seconds: float = 300.0, kept: int = 200_000,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.seconds, self.kept, self.clock = seconds, kept, clock
        self.database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = NORMAL")
        self.database.execute(TABLE)
        self.database.execute("CREATE INDEX IF NOT EXISTS by_time ON accepted (at)")

    def __len__(self) -> int:
        return self.database.execute("SELECT count(*) FROM accepted").fetchone()[0]

    def find(self, id: str) -> Kept | None:
        """The answer that was accepted for an id, if one was and is still remembered."""
        row = self.database.execute(
            "SELECT asked, status, headers, body FROM accepted WHERE id = ? AND at > ?",
            (id, self.clock() - self.seconds),
        ).fetchone()
        return row and Kept(row[0], row[1], [(name, value) for name, value in json.loads(row[2])], row[3])

    def accept(self, id: str, answer: Kept) -> Kept:
        """The answer for an id: this one if it is the first, else the one that was."""
        self.forget()
        self.database.execute(
            "INSERT INTO accepted (id, asked, status, headers, body, at) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO NOTHING",
            (id, answer.asked, answer.status, json.dumps(answer.headers), answer.body, self.clock()),
        )
        return self.find(id) or answer

    def forget(self) -> None:
        """Drop what is too old, or more than is kept."""
        self.database.execute("DELETE FROM accepted WHERE at <= ?", (self.clock() - self.seconds,))
        newest = self.database.execute("SELECT max(number) FROM accepted").fetchone()[0] or 0
        self.database.execute("DELETE FROM accepted WHERE number <= ?", (newest + 1 - self.kept,))


class LedgerProcess:
    """A ledger for other processes, answers as plain tuples; arguments as `Ledger` takes them."""

    def __init__(self, path: str, seconds: float, kept: int) -> None:
        self.ledger = Ledger(path, seconds, kept)

    async def find(self, id: str) -> tuple | None:
        """As `Ledger.find`."""
        found = self.ledger.find(id)
        return found and tuple(found)

    async def accept(self, id: str, answer: tuple) -> tuple:
        """As `Ledger.accept`."""
        return tuple(self.ledger.accept(id, Kept(*answer)))
