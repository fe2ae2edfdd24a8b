"""What goes through the engine: a `Request` with its `Row`s in, an `Answer` for each out; and who is asked on the way.

Times are seconds of `time.monotonic`. Nothing here keeps a text: a row is its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from .controller import Steering

Tokens = Mapping[str, Sequence[int]]  # `input_ids` and, where the model reads them, `token_type_ids`, without padding


@dataclass(frozen=True)
class Point:
    """When rows leave, under a name: an operating point's, `default`, `full-depth`, or `custom` for a request's fields.

    Args:
        policy: what the predictor makes of it; hashable.
        layers: that its rows run on average, as measured; None where nobody has.
    """

    name: str
    policy: Any
    layers: float | None = None


@dataclass(frozen=True)
class Answer:
    """A row's answer.

    Args:
        logits: (C,) float32; NaN where the row left as unsure.
        exit_layer: layers executed.
        rung: the name of the point under which it was answered.
        waited, ran: seconds in the queue, and in its batch.
    """

    logits: np.ndarray
    exit_layer: int
    rung: str
    waited: float = 0.0
    ran: float = 0.0


@dataclass(eq=False)
class Row:
    """One text of a request, as tokens.

    Args:
        number: its place in the request.
        watched: whether it was drawn, when it came, to be held against full depth.
    """

    request: Request
    number: int
    tokens: Tokens = field(repr=False)
    watched: bool = field(default=False, init=False)

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.tokens["input_ids"])


@dataclass(eq=False)
class Request:
    """Texts that are answered together, and on what terms.

    Args:
        model: who answers.
        texts: their tokens.
        point: a rule of the request's own; None: as the server decides when it forms the batch.
        differ: the floor it brings: at most this share of answers may differ from full depth's; None: the server's.
        budget: seconds from arrival in which it wishes its answer; the most careful rung that keeps it is taken.
        arrived, deadline: when it came, and when it is given up.
        done: resolves to the list of answers; cancelled when the client has gone.
    """

    model: Served
    texts: Sequence[Tokens] = field(repr=False)
    point: Point | None = None
    differ: float | None = None
    budget: float | None = None
    arrived: float = 0.0
    deadline: float = float("inf")
    done: Future[list[Answer]] = field(default_factory=Future, repr=False)
    answers: list[Answer | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.texts)

    def rows(self) -> list[Row]:
        """Its texts as rows: they know the request, it does not know them, so that no circle outlives its answer."""
        return [Row(self, number, tokens) for number, tokens in enumerate(self.texts)]


# ---- who is asked ----------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A predictor's answers to a batch."""

    logits: np.ndarray  # (B, C) float32
    exit_layer: Sequence[int]


class Predictor(Protocol):
    """A model that answers batches. All but `read` is called by the engine's thread alone.

    Attributes:
        labels: their names, by number.
        activation: what makes scores of logits: `softmax`, `sigmoid`, or `none` for values.
        depth: layers at full depth.
        max_length: tokens of a text that are read.
        together: the most rows of a batch; None: no limit of its own.
        mixes: whether rows of several points may share a batch.
        points: the operating points by name, with what was measured and certified of them.
        facts: what certificates are bound to, as it is here: the length of texts, the weights, their dtype.
        known: the points that have a name.
    """

    labels: Sequence[str]
    activation: str
    depth: int
    max_length: int
    together: int | None
    mixes: bool
    points: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, Any]
    known: Mapping[str, Point]

    def point(self, asked: str | Mapping[str, Any] | None) -> Point:
        """A name or fields of a policy, checked; raises a ValueError that names the field."""

    def read(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Tokens], list[bool]]:
        """The tokens of texts or pairs, cut to `max_length`, and whether each was cut. May be called by any thread."""

    def run(self, rows: Sequence[Tokens], points: Sequence[Point]) -> Found:
        """Answer a batch, each row under its point."""


class Watcher(Protocol):
    """Sees what is answered, and holds a share of it against full depth."""

    def arrived(self, row: Row) -> None:
        """A row is about to be queued; called by whoever submits it."""

    def answered(self, row: Row, answer: Answer, rung: str) -> None:
        """A row has its answer; called by the engine's thread. `row.request.point` is None where the server chose."""

    def due(self, now: float, idle: bool) -> Sequence[Row]:
        """Answered rows to run at full depth now (a batch at most); `idle`: whether no request waits."""

    def judged(self, row: Row, full: Answer) -> None:
        """The full-depth answer to a row that was due."""


class Meter(Protocol):
    """Counts what happens, for `/metrics`."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """An HTTP request has its answer."""

    def batch(self, model: str, rows: Sequence[Row], answers: Sequence[Answer], tokens: int, seconds: float) -> None:
        """A batch was run; `tokens` with padding."""

    def left(self, model: str, rows: int, why: str) -> None:
        """Rows left the queue without an answer: `gone`, `late`, `failed`."""

    def follow(self, engine: Any, models: Mapping[str, Served]) -> None:
        """Read gauges off an engine and its models from now on."""

    def text(self) -> tuple[bytes, str]:
        """All that was counted, as Prometheus reads it, and its media type."""


@dataclass(eq=False)
class Served:
    """A model under its name, with the rule of rows that bring none, and those who steer and watch it.

    Args:
        left_out: operating points that are no rungs of its ladder, by name, with the reason.
    """

    name: str
    predictor: Predictor
    point: Point
    controller: Steering | None = None
    watcher: Watcher | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def rule(self) -> Point:
        """By which rows leave now whose request does not say."""
        return self.point if self.controller is None else self.predictor.point(self.controller.current)

    @property
    def moves(self) -> bool:
        """Whether the rule changes with the traffic."""
        return self.controller is not None and len(self.controller.between) > 1
