"""Connections: how many may be open, how long and large the head of a request may be, and what one hears otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .limits import App, told

HEAD = 65_536  # bytes of a request that no body is made of: its head, chunks' lengths, trailers


class Patient(HttpToolsProtocol):
    """uvicorn's protocol with limits on the head of a request, which it has none for; bodies have their own.

    Attributes:
        seconds: that a head may take; the connection is closed then.
        most: connections that may be open; requests of further ones are answered by `crowded`.
    """

    seconds: float
    most: int
    crowded: App
    overdue: asyncio.TimerHandle | None = None
    beside = 0  # bytes of the request that are none of its body

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.overdue = self.loop.call_later(self.seconds, transport.close)
        if len(self.connections) > self.most:
            self.app: Any = self.crowded

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a request is there; for the next one, from its first byte on."""
        self.beside += len(data)
        super().data_received(data)
        if self.beside > HEAD and not self.transport.is_closing():
            self.send_400_response("the head of the request is too large")
        elif self.cycle is not None and not self.cycle.response_complete:
            self.stop_waiting()
        elif self.overdue is None:
            self.overdue = self.loop.call_later(self.seconds, self.transport.close)

    def on_body(self, body: bytes) -> None:
        """A part of a body, which `limits` counts."""
        self.beside -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is another request."""
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
        body = told(msg, "Malformed")
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def patient_for(seconds: float, most: int, crowded: App) -> type[HttpToolsProtocol]:
    """The protocol with its limits."""
    return type("Patient", (Patient,), {"seconds": seconds, "most": most, "crowded": staticmethod(crowded)})
