"""The models that are served, by name, and their first batches: one at `/`, and further adapters on its encoder."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..model.validation import refuse
from .batching import Limits
from .calls import Point, Predictor, Request, Served, Tokens
from .engine import Engine
from .ladder import FULL

DEFAULT = "default"
ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Models:
    """Models by name, added and dropped while the engine runs.

    Args:
        first: what answers requests that name no model.
        load: a folder's adapter over the first one's encoder, under a name; None: no other can be loaded.
        root: the folder that adapters may be loaded from while serving; None: from nowhere.

    Attributes:
        warm: whether their first batches have run.
        fixed: whether none may be dropped, since other servers behind the same address would keep it.
    """

    def __init__(
        self, engine: Engine, first: Served, load: Callable[[str, str], Served] | None = None, root: str | None = None
    ) -> None:
        self.engine, self.load, self.root = engine, load, root
        self.first, self.loading = first, threading.Lock()
        self.warm = self.fixed = False
        self.served: dict[str, Served] = {}
        self.changed({first.name: first})

    def __iter__(self) -> Iterator[Served]:
        return iter(list(self.served.values()))

    def get(self, name: str | None) -> Served | None:
        """The model of a name, or the first; None where there is none."""
        return self.first if name is None else self.served.get(name)

    def add(self, name: str, folder: str) -> Served:
        """Load a folder's adapter and put it in place of what had the name; requests that wait keep the old one.

        Raises:
            ValueError, OSError: a name or folder that will not do; nothing has changed then.
        """
        if not name or name == self.first.name or not set(name) <= ALLOWED:
            refuse("name", name[:40], f"of letters, digits, dot, dash, underscore, and not {self.first.name}")
        if self.load is None:
            refuse("model", name, "left out: an exported file stands on no encoder that others could share")
        with self.loading:
            served = self.load(name, folder)
            if self.warm:
                self.engine.call(partial(run_first_batches, self.engine, served)).result()
            self.changed({**self.served, name: served})
        return served

    def drop(self, name: str) -> bool:
        """Take a model away; requests that wait are answered. False where there is none of the name.

        Raises:
            ValueError: it is the first, or all are to stay.
        """
        if self.fixed:
            refuse("name", name[:40], "left alone: this is one server of several, which have the models of their start")
        if name == self.first.name:
            refuse("name", name, "another: the first model stays as long as the server runs")
        with self.loading:
            found = name in self.served
            self.changed({other: served for other, served in self.served.items() if other != name})
        return found

    def changed(self, served: dict[str, Served]) -> None:
        """Take these models, tell who looks after them, and forget others as soon as their requests are answered."""
        self.unwatch_others(served)
        self.served, self.engine.watched = served, list(served.values())
        if self.engine.meter is not None:
            self.engine.meter.follow(self.engine, served)
        if self.warm:
            spare_collections()

    def unwatch_others(self, served: dict[str, Served]) -> None:
        """Watch no models but these: the rows that a watcher keeps know their model, which would keep it."""
        for name, each in self.served.items():
            if served.get(name) is not each:
                each.watcher = None

    def inside(self, folder: str) -> str:
        """A folder below the root, by its path from there.

        Raises:
            ValueError: there is no root, or the folder is not in it.
        """
        if self.root is None:
            refuse("folder", folder[:80], "left out: this server was started without a folder to load models from")
        root = Path(self.root).resolve()
        path = Path(os.path.realpath(root / folder)) if "\0" not in folder else root
        if root not in path.parents or not path.is_dir():
            refuse("folder", folder[:80], "a folder inside the one that the server loads models from")
        return str(path)

    def warm_up(self) -> None:
        """Run the first batches of all models; ready when this returns."""
        for served in self:
            self.engine.call(partial(run_first_batches, self.engine, served)).result()
        self.was_warmed()

    def was_warmed(self) -> None:
        """The first batches have run: ready from now on."""
        spare_collections()
        self.warm = True


def spare_collections() -> None:
    """Have full garbage collections pass by all there is now: to look at a loaded library takes them long each time."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.collect()  # counts what is left: the next full one waits for a quarter of that much


# ---- first batches ---------------------------------------------------------------------------------------------------

ROUNDS = 3  # the first batches are slower than all later ones


def run_first_batches(engine: Engine, served: Served) -> None:
    """Run short and full batches by a model's own rule, the largest at full depth, a short one under every named point.

    So no request pays for a model's first batches or for the memory of its largest, and the engine knows its pace.
    Called on the engine's thread.
    """
    batches, known = first_batches(served.predictor, engine.limits), served.predictor.known
    for _ in range(ROUNDS):
        for batch in batches:
            run_outside_queue(engine, served, batch, served.point)
    run_outside_queue(engine, served, batches[-1], known.get(FULL, served.point))
    for point in known.values():
        run_outside_queue(engine, served, batches[0], point)


def first_batches(predictor: Predictor, limits: Limits) -> list[list[Tokens]]:
    """One short text, a full batch of short ones, a full one of texts as long as are read in a batch."""
    (short,), _ = predictor.read(["warm"])
    most = min(limits.rows, predictor.together or limits.rows)
    long = of_length(short, min(predictor.max_length, limits.tokens))
    return [[short], *([row] * min(most, max(1, limits.tokens // len(row["input_ids"]))) for row in (short, long))]


def of_length(row: Tokens, length: int) -> Tokens:
    """A row with so many tokens: its middle one repeated, or those behind the middle left out."""
    middle, more = len(row["input_ids"]) // 2, length - len(row["input_ids"])
    return {name: [*ids[:middle], *[ids[middle]] * more, *ids[middle - min(more, 0) :]] for name, ids in row.items()}


def run_outside_queue(engine: Engine, served: Served, batch: list[Tokens], point: Point) -> None:
    """Run a batch at once and learn what it took."""
    rows, began = Request(served, batch).rows(), engine.clock()
    found = served.predictor.run(batch, [point] * len(batch))
    engine.pace.saw(engine.clock() - began, len(rows), max(row.length for row in rows), found.exit_layer)
