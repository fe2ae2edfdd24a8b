"""The routes: answers as text-embeddings-inference and the Hub give them, models, health, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from ..export.facts import library_version
from .answers import Health, Info, Label, errors, worded
from .bodies import Asked, Folder, Inference, Invalid, Predict, as_inference, as_predict, parsed, taking
from .calls import Answer, Served
from .service import Service

Respond = Callable[[Request, str], Awaitable[Response]]
PLAIN = " !#$%&'()*+-./:;<=>?@[]^_`{|}~"  # what a header may hold as it is, beside letters and digits; no comma
ANSWERING = errors(400, 404, 408, 413, 422, 429, 500, 503, 504)


class Direct(APIRoute):
    """A route that FastAPI documents and whose function reads what it needs itself: nothing is looked for to inject."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What handles a request."""

        async def handle(request: Request) -> Response:
            """The function, with what is in the path."""
            return await self.endpoint(request, **request.path_params)

        return handle


def routes_of(service: Service) -> APIRouter:
    """All routes of a service."""
    router = APIRouter()
    add_answers(router, service)
    add_models(router, service)
    add_state(router, service)
    return router


# ---- answers ---------------------------------------------------------------------------------------------------------


def add_answers(router: APIRouter, service: Service) -> None:
    """`POST /predict` and `POST /`, for the first model and by name."""
    both = list[Label] | list[list[Label]]
    routes: Any = (("predict", as_predict, Predict, both), ("", as_inference, Inference, list[list[Label]]))
    for path, read, body, answer in routes:
        respond = answering(service, read)
        documented: dict[str, Any] = {
            "methods": ["POST"], "summary": (body.__doc__ or "").strip(), "openapi_extra": taking(body),
            "responses": {200: {"model": answer, "headers": HEADERS}, **ANSWERING}, "route_class_override": Direct,
        }  # fmt: skip

        router.add_api_route(f"/{path}", first_of(service, respond), **documented)
        router.add_api_route(f"/models/{{name}}/{path}".rstrip("/"), respond, **documented)


def answering(service: Service, read: Callable[[bytes], Asked]) -> Respond:
    """A route's function: a body in, labels out."""

    async def respond(request: Request, name: str) -> Response:
        """The labels of the texts in a body."""
        began = service.engine.clock()
        served = service.models.get(name) or missing()
        asked = read(await request.body())
        answers = await service.answers(asked, served, request.receive)
        seconds = service.engine.clock() - began
        return JSONResponse(worded(answers, asked, served.predictor), headers=headers_of(answers, seconds))

    return respond


def first_of(service: Service, respond: Respond) -> Callable[[Request], Awaitable[Response]]:
    """The same for the first model, without a name in the path."""

    async def first(request: Request) -> Response:
        return await respond(request, service.models.first.name)

    return first


def missing() -> NoReturn:
    """Refuse a name that no model has."""
    raise Invalid("must be a model that is served: GET /models", "name", 404)


HEADERS = {
    name: {"description": what, "schema": {"type": "string"}}
    for name, what in {
        "X-Exit-Layer": "layers executed for each text", "X-Exit-Policy": "each text's operating point",
        "X-Total-Time": "milliseconds in the server", "X-Queue-Time": "of the text that waited longest",
        "X-Inference-Time": "of the batch that ran longest",
    }.items()
}  # fmt: skip


def headers_of(answers: list[Answer], seconds: float) -> dict[str, str]:
    """Where each text left and under which point, and where the time went, in milliseconds."""
    return {
        "X-Exit-Layer": ",".join(str(answer.exit_layer) for answer in answers),
        "X-Exit-Policy": ",".join(quote(answer.rung, safe=PLAIN) for answer in answers),
        "X-Total-Time": f"{1000 * seconds:.1f}",
        "X-Queue-Time": f"{1000 * max(answer.waited for answer in answers):.1f}",
        "X-Inference-Time": f"{1000 * max(answer.ran for answer in answers):.1f}",
    }


# ---- models ----------------------------------------------------------------------------------------------------------


def add_models(router: APIRouter, service: Service) -> None:
    """`GET`, `PUT` and `DELETE` of `/models`: task adapters over one encoder, while the server runs."""
    models = service.models

    @router.get("/models", summary="the models that are served, by name")
    async def listed() -> dict[str, Info]:
        return {served.name: info_of(service, served) for served in models}

    @router.put(
        "/models/{name}", summary="load an adapter under a name, or another in its place", response_model=Info,
        responses=errors(400, 408, 413, 422, 503), openapi_extra=taking(Folder),
    )  # fmt: skip
    async def put(request: Request, name: str) -> Response:
        """Load the adapter in a folder, and serve it under a name."""
        folder = parsed(Folder, await request.body()).folder
        try:
            served = await asyncio.to_thread(lambda: models.add(name, models.inside(folder)))
        except (ValueError, OSError) as error:
            raise Invalid(str(error)[:500]) from None
        return JSONResponse(info_of(service, served).model_dump())

    @router.delete("/models/{name}", status_code=204, summary="drop an adapter", responses=errors(404, 422))
    async def delete(name: str) -> Response:
        """Serve an adapter no longer."""
        try:
            found = await asyncio.to_thread(models.drop, name)
        except ValueError as error:
            raise Invalid(str(error)) from None
        if not found:
            missing()
        return Response(status_code=204)


# ---- state -----------------------------------------------------------------------------------------------------------


def add_state(router: APIRouter, service: Service) -> None:
    """`GET /health`, `/info` and `/metrics`."""

    @router.get("/health", summary="200 once warm", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Response:
        status = "ok" if service.ready else "warming" if service.engine.alive else "stopped"
        return JSONResponse({"status": status}, 200 if service.ready else 503)

    @router.get("/info", summary="the first model and the limits of requests")
    async def info() -> Info:
        return info_of(service, service.models.first)

    @router.get("/metrics", summary="for Prometheus", response_class=Response, responses={200: {"content": TEXT}})
    async def metrics() -> Response:
        body, kind = (b"", "text/plain") if service.meter is None else service.meter.text()
        return Response(body, media_type=kind)


TEXT: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}


def info_of(service: Service, served: Served) -> Info:
    """What there is to know of a model."""
    predictor, limits = served.predictor, service.engine.limits
    numbered = {str(number): label for number, label in enumerate(predictor.labels)}
    return Info(
        model_id=served.name,
        version=library_version(),
        model_type={"classifier": {"id2label": numbered, "label2id": {v: int(k) for k, v in numbered.items()}}},
        max_input_length=predictor.max_length,
        max_client_batch_size=service.limits.texts,
        max_batch_tokens=limits.tokens,
        max_concurrent_requests=limits.queue,
        exit_policy=served.rule.name,
        layers=predictor.depth,
        activation=predictor.activation,
        operating_points={name: dict(point) for name, point in predictor.points.items()},
        ladder=list(served.controller.within()) if served.controller is not None and served.moves else None,
        waiting=service.engine.waiting,
    )
