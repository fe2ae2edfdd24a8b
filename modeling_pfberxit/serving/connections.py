"""Connections that do not wait for ever: one that does not finish a request's head in time is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol with a time limit on the head of a request, which it has none for; bodies have their own."""

    class Patient(H11Protocol):
        """Closes a connection on which the head of a request does not come to its end."""

        overdue: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Wait for the first request."""
            super().connection_made(transport)
            self.overdue = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            """Wait no longer once a request is there; for the next one, from its first byte on."""
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self.stop_waiting()
            elif self.overdue is None:
                self.overdue = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            """Nothing is waited for."""
            self.stop_waiting()
            super().connection_lost(exc)

        def stop_waiting(self) -> None:
            """Let the connection be."""
            if self.overdue is not None:
                self.overdue.cancel()
                self.overdue = None

    return Patient
