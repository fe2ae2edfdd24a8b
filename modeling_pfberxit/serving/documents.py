"""What the OpenAPI document says of bodies, answers and errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Label(BaseModel):
    """A label of a text; with `details` where the text left, and under which rule."""

    label: str
    score: float | None
    exit_layer: int | None = None
    exit_policy: str | None = None


class Error(BaseModel):
    """Why there is no answer, and which field is wrong."""

    error: str
    error_type: str
    field: str | None = None


class Health(BaseModel):
    """`ok`, `warming` or `stopped`."""

    status: str


class Folder(BaseModel):
    """Where an adapter lies: a path below the folder that the server loads models from."""

    folder: str


class Info(BaseModel):
    """A served model, in text-embeddings-inference's words where it has them, and the limits of requests."""

    model_id: str
    version: str
    model_type: dict[str, Any]
    max_input_length: int
    max_client_batch_size: int
    max_batch_tokens: int
    max_concurrent_requests: int
    exit_policy: str
    layers: int
    activation: str
    operating_points: dict[str, Any]
    ladder: list[str] | None
    waiting: int


REASONS = {
    400: "no JSON", 404: "no such model", 408: "sent too slowly", 413: "too large, too many or too long",
    422: "a field is wrong", 429: "the queue is full", 500: "the model failed", 501: "not of an exported file",
    503: "not ready, or shutting down", 504: "not in time",
}  # fmt: skip
KINDS = {
    400: "Malformed", 404: "NotFound", 405: "MethodNotAllowed", 413: "Validation", 422: "Validation",
    429: "Overloaded", 500: "Backend", 501: "NotImplemented", 503: "Unhealthy", 504: "Timeout",
}  # fmt: skip


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Statuses as a route documents them."""
    return {status: {"model": Error, "description": REASONS[status]} for status in statuses}


def taking(body: type[BaseModel]) -> dict[str, Any]:
    """A body as a route documents it, where the route reads it itself."""
    schema = body.model_json_schema()
    schema = inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def inlined(schema: Any, known: dict[str, Any]) -> Any:
    """A schema with what it refers to in its place."""
    if isinstance(schema, list):
        return [inlined(part, known) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(known[schema["$ref"].rpartition("/")[2]], known)
    return {name: inlined(part, known) for name, part in schema.items()}
