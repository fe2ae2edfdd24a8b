"""The application: routes behind the limits, an engine that starts and drains with it, errors as JSON."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from ..export.facts import library_version
from .answers import KINDS
from .bodies import Invalid
from .layers import layers_of
from .limits import App, Guard
from .outcomes import Busy, Closed, Failed, Late
from .page import page_of
from .routes import routes_of
from .service import Service


def make_app(service: Service, drain: float = 30.0) -> FastAPI:
    """The routes of a service; its engine runs as long as the application.

    Args:
        drain: seconds in which open requests are answered at the end.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Start the engine and warm it up; drain it when the application ends."""
        service.engine.start()
        if not service.models.warm:
            threading.Thread(target=service.models.warm_up, name="warm-up", daemon=True).start()
        yield
        await asyncio.to_thread(service.engine.drain, drain)
        service.readers.shutdown(wait=False)

    app = FastAPI(
        title="pfberxit", version=library_version(), lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Text classifiers that let each text leave after the layer that is sure of it.",
    )  # fmt: skip
    for kind in ERRORS:
        app.add_exception_handler(kind, refusal)
    routers = routes_of(service), layers_of(service), page_of()
    for router in routers:
        app.include_router(router)
    app.state.routes = [route for router in routers for route in router.routes]
    return app


def guarded(app: App, service: Service) -> Guard:
    """The application as it is served: behind the limits."""
    return Guard(app, service.limits, service.meter)


# ---- errors ----------------------------------------------------------------------------------------------------------

ERRORS: dict[type[Exception], Callable[[Any], int]] = {
    Invalid: lambda error: error.status,
    Busy: lambda error: 429,
    Closed: lambda error: 503,
    Late: lambda error: 504,
    Failed: lambda error: 500,
    HTTPException: lambda error: error.status_code,
    Exception: lambda error: 500,
}


async def refusal(request: Request, error: Any) -> Response:
    """An error as JSON: in words, its kind, and the field that is wrong."""
    status = next(status(error) for kind, status in ERRORS.items() if isinstance(error, kind))
    expected = isinstance(error, tuple(ERRORS)[:-1])  # what another error says may hold a part of a text
    words = str(getattr(error, "detail", error)) if expected else "the server failed"
    body = {"error": words, "error_type": KINDS.get(status, "Error")}
    if getattr(error, "field", ""):
        body["field"] = error.field
    headers = dict(getattr(error, "headers", None) or {})
    if status == 405:
        headers["Allow"] = ", ".join(methods_of(request))
    if isinstance(error, (Busy, Closed)):
        headers["Retry-After"] = str(getattr(error, "retry_after", 1))
    return JSONResponse(body, status, headers)


def methods_of(request: Request) -> list[str]:
    """What may be asked of a path, over all of its routes."""
    matching = (route for route in request.app.state.routes if route.matches(request.scope)[0] is Match.PARTIAL)
    return sorted({method for route in matching for method in route.methods})
