"""What stands before the routes: the bearer token, the size of bodies, and how long a client may take to send one."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from ..model.validation import above_zero, refuse, whole
from .calls import Meter
from .outcomes import report

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN = {("GET", "/health"), ("GET", "/")}  # without a token: for those who start and stop servers; the empty page


@dataclass(frozen=True)
class HttpLimits:
    """What one request may be.

    Args:
        body: bytes.
        texts: of a batch.
        characters: of a text, both of a pair together.
        upload: seconds in which a request must have been sent.
        deadline: seconds in which it is answered, or given up.
        connections: that may be open.
        token: that every request must bear; None: anybody may ask.
    """

    body: int = 2_000_000
    texts: int = 64
    characters: int = 100_000
    upload: float = 10.0
    deadline: float = 30.0
    connections: int = 1024
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("body", "texts", "characters", "connections"):
            whole(1)(name, getattr(self, name))
        for name in ("upload", "deadline"):
            above_zero(name, getattr(self, name))
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            refuse("token", "...", "printable ASCII characters")


class Refused(Exception):
    """A request that does not reach its route."""

    def __init__(self, status: int, message: str, kind: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.headers = status, message, kind, headers


class Guard:
    """Middleware: refuses what is beyond the limits, counts what is answered, and logs errors without their words.

    Args:
        app: what it stands before.
        meter: told of every request.
    """

    def __init__(self, app: App, limits: HttpLimits, meter: Meter | None = None) -> None:
        self.app, self.limits, self.meter = app, limits, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 0

        async def noted(message: Message) -> None:
            """Send a message on, and keep the status of the response."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self.check_token(scope)
            await self.app(scope, replayed(await self.read(scope, receive), receive), noted)
        except Gone:
            status = 499
        except (Exception, asyncio.CancelledError) as error:
            await answer_error(noted, error, begun=status > 0)
        finally:
            if self.meter is not None:
                self.meter.request(route_of(scope), status, time.monotonic() - began)

    def check_token(self, scope: Scope) -> None:
        """Refuse a request without the token."""
        if self.limits.token is None or (scope["method"], scope["path"]) in OPEN:
            return
        given = header(scope, b"authorization")
        expected = f"Bearer {self.limits.token}".encode()
        if not hmac.compare_digest(given, expected):
            raise Refused(
                401, "the bearer token is missing, or another", "Unauthorized", **{"WWW-Authenticate": "Bearer"}
            )

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The body, if it comes soon enough and is within the limit.

        Each message is waited for alone: a task that raised would be held in a circle, with the body's parts.
        """
        declared, until = header(scope, b"content-length"), time.monotonic() + self.limits.upload
        if declared.isdigit() and int(declared) > self.limits.body:
            raise self.too_large()
        parts, size, more = [], 0, True
        while more:
            message = await in_time(receive, until)
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self.limits.body:
                raise self.too_large()
        return b"".join(parts)

    def too_large(self) -> Refused:
        """What refuses a body beyond the limit."""
        return Refused(413, f"the body is larger than {self.limits.body} bytes", "Validation", Connection="close")


async def in_time(receive: Receive, until: float) -> Message:
    """The next message, if it comes before a moment of `time.monotonic`."""
    try:
        return await asyncio.wait_for(receive(), until - time.monotonic())
    except asyncio.TimeoutError:
        raise Refused(408, "the request took too long to arrive", "Timeout", Connection="close") from None


async def answer_error(send: Send, error: BaseException, begun: bool) -> None:
    """Say why a request could not be handled, unless its answer has begun."""
    refused = refusal_of(error)  # not a local of those who raise: its traceback would hold it, and a body, in a circle
    if not begun:
        await answer(send, refused)


def refusal_of(error: BaseException) -> Refused:
    """What is answered where a request could not be handled; errors that nobody expects are logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, asyncio.CancelledError):  # the server's time to drain is over
        return Refused(503, "the server has shut down", "Unhealthy", **{"Retry-After": "1"})
    report(error)
    return Refused(500, "the server failed", "Internal")


def crowded(meter: Meter | None = None) -> App:
    """What answers where too many connections are open."""

    async def refuse_one(scope: Scope, receive: Receive, send: Send) -> None:
        """503 to one connection, which is then closed."""
        more = {"Retry-After": "1", "Connection": "close"}
        await answer(send, Refused(503, "too many connections are open", "Overloaded", **more))
        if meter is not None:
            meter.request("other", 503, 0.0)

    return refuse_one


class Gone(Exception):
    """The client has closed the connection."""


def header(scope: Scope, name: bytes) -> bytes:
    """A header's value; empty where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def replayed(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already, and then what comes after it."""
    given = False

    async def again() -> Message:
        """The body that was read; from then on what the client sends."""
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def route_of(scope: Scope) -> str:
    """The route's pattern, so that no client can make up new ones; `other` where there is none."""
    return getattr(scope.get("route"), "path", "other")


def error_body(message: str, kind: str) -> bytes:
    """An error as a body of JSON."""
    return json.dumps({"error": message, "error_type": kind}).encode()


async def answer(send: Send, refused: Refused) -> None:
    """Send an error as the routes do."""
    body = error_body(refused.message, refused.kind)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **refused.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
