"""One answer for each request id: middleware in front of an application that would answer a retry anew.

A client that did not get its answer, since a process died or a connection broke, sends the same request again with the
same `Idempotency-Key`. If the first try was answered after all, the retry gets that answer, byte for byte; if both are
under way, the answer of one is accepted and both get it.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from ..limits import App, Message, Receive, Refused, Scope, Send, header, replayed
from .ledger import Kept

ID, REPEATED = b"idempotency-key", (b"idempotent-replayed", b"true")
LONGEST = 200  # characters of an id


class Accepting(Protocol):
    """A `Ledger`, in a process of its own."""

    async def find(self, id: str) -> Kept | None:
        """As `Ledger.find`."""

    async def accept(self, id: str, answer: Kept) -> Kept:
        """As `Ledger.accept`."""


class OneAnswer:
    """Middleware, behind the one that checks tokens and bodies.

    Args:
        app: what answers.
    """

    def __init__(self, app: App, ledger: Accepting) -> None:
        self.app, self.ledger = app, ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; those without an id as the application does."""
        if scope["type"] != "http" or scope["method"] != "POST" or not (id := header(scope, ID)):
            return await self.app(scope, receive, send)
        if len(id) > LONGEST:
            raise Refused(422, f"idempotency-key: must have at most {LONGEST} characters", "Validation")
        body = (await receive())["body"]
        key, asked = keyed(scope, id), hashlib.sha256(b"%s\n%s" % (scope["raw_path"], body)).hexdigest()
        found = await self.ledger.find(key)
        if repeated := found is not None:
            kept = found
        else:
            own = Caught()
            await self.app(scope, replayed(body, receive), own)
            kept = own.kept(asked)
            if kept.status == 200:  # all else is no answer, and a retry may get one
                first = await self.ledger.accept(key, kept)
                kept, repeated = first, first != kept
        if kept.asked != asked:
            raise Refused(409, "idempotency-key: is that of another request", "Validation")
        await reply(send, kept, repeated)


class Caught:
    """An application's answer, held back."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, list[tuple[bytes, bytes]](), b""

    async def __call__(self, message: Message) -> None:
        """As ASGI's `send`."""
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    def kept(self, asked: str) -> Kept:
        """The answer to what was asked."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.headers]
        return Kept(asked, self.status, headers, self.body)


def keyed(scope: Scope, id: bytes) -> str:
    """An id as it is remembered: of those who bear one token, not of others."""
    return hashlib.sha256(b"%s\n%s" % (header(scope, b"authorization"), id)).hexdigest()


async def reply(send: Send, kept: Kept, repeated: bool) -> None:
    """Send an answer, and whether it is an earlier one."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept.headers]
    await send({"type": "http.response.start", "status": kept.status, "headers": headers + [REPEATED] * repeated})
    await send({"type": "http.response.body", "body": kept.body})
