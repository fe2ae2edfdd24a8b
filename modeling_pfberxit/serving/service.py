"""From a request's body to its answers: texts become tokens, the engine answers, whoever has gone is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .bodies import Asked, Invalid, Text
from .calls import Answer, Meter, Point, Request, Served, Tokens
from .engine import Engine
from .limits import Gone, HttpLimits, Message
from .models import Models
from .outcomes import Late

Listen = Callable[[], Awaitable[Message]]


@dataclass
class Service:
    """All that the routes share.

    Args:
        readers: the thread that makes tokens of texts, so that a long text holds up no other connection.
    """

    engine: Engine
    models: Models
    limits: HttpLimits = field(default_factory=HttpLimits)
    meter: Meter | None = None
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
        self.check_size(asked.texts)
        point = self.point(asked, served)
        tokens = await self.tokens(asked, served)
        budget = asked.terms.latency_budget_ms
        request = Request(
            served, tokens, point, asked.terms.differ, None if budget is None else budget / 1000,
            arrived, arrived + self.limits.deadline,
        )  # fmt: skip
        future = asyncio.wrap_future(self.engine.submit(request))
        return await unless_gone(future, listen, request.deadline - self.engine.clock())

    def check_size(self, texts: list[Text]) -> None:
        """Refuse more, or longer, texts than a request may have."""
        if len(texts) > self.limits.texts:
            raise Invalid(f"must be at most {self.limits.texts} texts, not {len(texts)}", "inputs", 413)
        for number, text in enumerate(texts):
            size = len(text) if isinstance(text, str) else sum(map(len, text))
            if size > self.limits.characters:
                message = f"must have at most {self.limits.characters} characters, not {size}"
                raise Invalid(message, f"inputs[{number}]", 413)

    def point(self, asked: Asked, served: Served) -> Point | None:
        """The rule that the request brings, or None; refuses what this model cannot do."""
        terms = asked.terms
        if terms.exit_policy is not None:
            try:
                return served.predictor.point(terms.exit_policy)
            except (ValueError, TypeError) as error:
                raise Invalid(str(error)[:500], "exit_policy") from None
        for name in ("differ", "latency_budget_ms"):
            if getattr(terms, name) is not None and served.controller is None:
                raise Invalid("must be left out: this model has no certified points to choose among", name)
        return None

    async def tokens(self, asked: Asked, served: Served) -> list[Tokens]:
        """The tokens of all texts; refuses those that are too long where they may not be cut."""
        loop = asyncio.get_running_loop()
        tokens, cut = await loop.run_in_executor(self.readers, served.predictor.read, asked.texts)
        for number, row in enumerate(tokens):
            if not row["input_ids"]:
                raise Invalid("must be a text in which the model finds a token", f"inputs[{number}]")
            if cut[number] and not asked.truncate:
                message = f"must have at most {served.predictor.max_length} tokens, or be cut: truncate"
                raise Invalid(message, f"inputs[{number}]", 413)
        return tokens


async def unless_gone(answers: asyncio.Future[list[Answer]], listen: Listen, seconds: float) -> list[Answer]:
    """The answers, unless the client goes first or the time is over; the request is cancelled then."""
    gone = asyncio.ensure_future(closed(listen))
    either: set[asyncio.Future] = {answers, gone}
    try:
        await asyncio.wait(either, timeout=max(seconds, 0.0), return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            return answers.result()
        raise Gone if gone.done() else Late("the deadline has passed")
    finally:
        gone.cancel()
        answers.cancel()


async def closed(listen: Listen) -> None:
    """Return when the client closes the connection."""
    while (await listen())["type"] != "http.disconnect":
        pass
