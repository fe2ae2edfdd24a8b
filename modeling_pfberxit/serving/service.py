"""From a request's body to its answers: texts become tokens, the engine answers, whoever has gone is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from .bodies import Asked, Invalid, Text
from .calls import Answer, Meter, Point, Request, Served, Tokens
from .engine import Engine
from .limits import Gone, HttpLimits, Message
from .models import Models
from .outcomes import Busy, Late

Listen = Callable[[], Awaitable[Message]]
SHORT = 2_000  # characters of texts that are made tokens at once: sooner done than handed to another thread


@dataclass
class Service:
    """All that the routes share.

    Args:
        readers: the thread that makes tokens of long texts, so that they hold up no other connection.
        reading: texts that wait for it or are with it; they count as waiting for the engine.
    """

    engine: Engine
    models: Models
    limits: HttpLimits = field(default_factory=HttpLimits)
    meter: Meter | None = None
    reading: int = 0
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "reader"))

    @property
    def ready(self) -> bool:
        """Whether it is warm and takes requests."""
        return self.models.warm and self.engine.alive

    async def answers(self, asked: Asked, served: Served, listen: Listen) -> list[Answer]:
        """A request's answers in the order of its texts.

        Args:
            listen: gives the connection's next message; the request is forgotten when the client has gone.

        Raises:
            Invalid: it cannot be answered. outcomes.Busy, Closed, Late, Failed: it was not. limits.Gone: nobody waits.
        """
        arrived = self.engine.clock()
        self.check_size(asked)
        point = self.point(asked, served)
        return await unless_gone(self.answered(asked, served, point, arrived), listen, self.limits.deadline)

    async def answered(self, asked: Asked, served: Served, point: Point | None, arrived: float) -> list[Answer]:
        """Texts as tokens, and what the engine answers."""
        budget = asked.terms.latency_budget_ms
        request = Request(
            served, await self.tokens(asked, served), point, asked.terms.differ,
            None if budget is None else budget / 1000, arrived, arrived + self.limits.deadline,
        )  # fmt: skip
        return await asyncio.wrap_future(self.engine.submit(request))

    def check_size(self, asked: Asked) -> None:
        """Refuse more, or longer, texts than a request may have."""
        if len(asked.texts) > self.limits.texts:
            raise Invalid(f"must be at most {self.limits.texts} texts, not {len(asked.texts)}", "inputs", 413)
        for number, text in enumerate(asked.texts):
            if (size := size_of(text)) > self.limits.characters:
                message = f"must have at most {self.limits.characters} characters, not {size}"
                raise Invalid(message, asked.field(number), 413)

    def point(self, asked: Asked, served: Served) -> Point | None:
        """The rule that the request brings, or None; refuses what this model cannot do."""
        terms = asked.terms
        if terms.exit_policy is not None:
            try:
                return served.predictor.point(terms.exit_policy)
            except (ValueError, TypeError) as error:
                raise Invalid(str(error)[:500], f"{asked.where}exit_policy") from None
        for name in ("differ", "latency_budget_ms"):
            if getattr(terms, name) is not None and served.controller is None:
                raise Invalid(
                    "must be left out: this model has no certified points to choose among", asked.where + name
                )
        return None

    async def tokens(self, asked: Asked, served: Served) -> list[Tokens]:
        """The tokens of all texts; refuses those that are too long where they may not be cut."""
        tokens, cut = await self.read(asked.texts, served)
        for number, row in enumerate(tokens):
            if not row["input_ids"]:
                raise Invalid("must be a text in which the model finds a token", asked.field(number))
            if cut[number] and not asked.truncate:
                message = f"must have at most {served.predictor.max_length} tokens, or be cut: truncate"
                raise Invalid(message, asked.field(number), 413)
        return tokens

    async def read(self, texts: list[Text], served: Served) -> tuple[list[Tokens], list[bool]]:
        """Tokens and what was cut: of short texts here, of others by the thread for them, where none waits before."""
        if self.reading + self.engine.waiting + len(texts) > self.engine.limits.queue:
            raise Busy(self.engine.pace.retry_after(self.reading + self.engine.waiting))
        if not self.reading and sum(map(size_of, texts)) <= SHORT:
            return served.predictor.read(texts)
        loop, reading = asyncio.get_running_loop(), self.readers.submit(served.predictor.read, texts)
        self.reading += len(texts)
        reading.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(self.was_read, len(texts)))
        return await asyncio.wrap_future(reading)

    def was_read(self, texts: int) -> None:
        """So many texts no longer keep the thread for them, also where nobody waited for them any more."""
        self.reading -= texts


def size_of(text: Text) -> int:
    """Characters of a text, or of both of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


async def unless_gone(answering: Coroutine[Any, Any, list[Answer]], listen: Listen, seconds: float) -> list[Answer]:
    """What a coroutine answers, unless the client goes first or the time is over; it is cancelled then."""
    loop = asyncio.get_running_loop()
    answers, gone = loop.create_task(answering), loop.create_task(closed(listen))
    why: list[Exception] = []

    def end(error: Exception) -> None:
        """Answer no more."""
        why.append(error)
        answers.cancel()

    late = loop.call_later(max(seconds, 0.0), end, Late("the deadline has passed"))
    gone.add_done_callback(lambda _: end(Gone()))
    try:
        return await answers
    except asyncio.CancelledError:
        if why:
            raise why.pop(0) from None  # kept in a local, it would hold itself by its traceback, and the body
        raise
    finally:
        late.cancel()
        gone.cancel()


async def closed(listen: Listen) -> None:
    """Return when the client closes the connection."""
    while (await listen())["type"] != "http.disconnect":
        pass
