"""Connections: how many may be open, how long and large the head of a request may be, and what one hears otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .limits import App, error_body

HEAD = 65_536  # bytes in a row that no body is made of: a head, a chunk's length, trailers


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on the head of a request, which it has none for; bodies have their own.

    Attributes:
        seconds: that a head may take; the connection is closed then.
        most: connections that may be open; requests of further ones are answered by `crowded`.
    """

    seconds: float
    most: int
    crowded: App
    overdue: asyncio.TimerHandle | None = None
    beside = 0  # bytes since the last ones of a body

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.overdue = self.loop.call_later(self.seconds, transport.close)
        if len(self.connections) > self.most:
            self.app: Any = self.crowded

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a request is there; for the next one, from its first byte on."""
        self.beside += len(data)
        self._unset_keepalive_if_required()
        try:
            self.feed(data)
        except HttpParserError:
            return self.send_400_response("Invalid HTTP request received.")
        if self.beside > HEAD and not self.transport.is_closing():
            self.send_400_response("the head of the request is too large")
        elif self.cycle is not None and not self.cycle.response_complete:
            self.stop_waiting()
        elif self.overdue is None:
            self.overdue = self.loop.call_later(self.seconds, self.transport.close)

    def feed(self, data: bytes | memoryview) -> None:
        """Parse. Who asks for another protocol, as Java's client does (h2c), is answered in this one.

        The parser ends such a request at its head and would take its body for the next one: the head is parsed again
        without the wish.
        """
        while data:
            try:
                return self.parser.feed_data(data)
            except HttpParserUpgrade as wish:
                data = memoryview(data)[wish.args[0] :]
                if self.wishes:
                    self.parser.feed_data(self.head())

    @property
    def wishes(self) -> bool:
        """Whether the request that is parsed asks for another protocol."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def head(self) -> bytes:
        """The head that was parsed, without `Upgrade`."""
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = (b"%s: %s" % each for each in self.headers if each[0] != b"upgrade")
        return b"\r\n".join((first, *kept, b"", b""))

    def on_headers_complete(self) -> None:
        """Handle the request, unless its head is parsed again."""
        if not self.wishes:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body, which `limits` counts."""
        self.beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is another request."""
        if not self.wishes:
            self.beside = 0
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        self.stop_waiting()
        super().connection_lost(exc)

    def stop_waiting(self) -> None:
        """Let the connection be."""
        if self.overdue is not None:
            self.overdue.cancel()
            self.overdue = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request in JSON, and close."""
        body = error_body(msg, "Malformed")
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def limited_protocol(seconds: float, most: int, crowded: App) -> type[HttpToolsProtocol]:
    """The protocol with its limits."""
    return type(
        "LimitedProtocol", (LimitedProtocol,), {"seconds": seconds, "most": most, "crowded": staticmethod(crowded)}
    )
