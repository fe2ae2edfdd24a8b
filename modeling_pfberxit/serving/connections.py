"""Connections: how many may be open, how long one may take with the head of a request, and what it hears otherwise."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import App, told


class Patient(H11Protocol):
    """uvicorn's protocol with a time limit on the head of a request, which it has none for; bodies have their own.

    Attributes:
        seconds: that a head may take; the connection is closed then.
        most: connections that may be open; requests of further ones are answered by `crowded`.
    """

    seconds: float
    most: int
    crowded: App
    overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self.overdue = self.loop.call_later(self.seconds, transport.close)
        if len(self.connections) > self.most:
            self.app: Any = self.crowded

    def data_received(self, data: bytes) -> None:
        """Wait no longer once a request is there; for the next one, from its first byte on."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self.stop_waiting()
        elif self.overdue is None:
            self.overdue = self.loop.call_later(self.seconds, self.transport.close)

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
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        head = h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def patient_for(seconds: float, most: int, crowded: App) -> type[H11Protocol]:
    """The protocol with its limits."""
    return type("Patient", (Patient,), {"seconds": seconds, "most": most, "crowded": staticmethod(crowded)})
