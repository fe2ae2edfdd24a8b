"""Answers and errors: in the words that clients expect, and as the OpenAPI document describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from .bodies import Asked
from .calls import Answer, Predictor

# ---- labels ----------------------------------------------------------------------------------------------------------


class Label(BaseModel):
    """A label of a text; with `details` where the text left, and under which rule."""

    label: str
    score: float | None
    exit_layer: int | None = None
    exit_policy: str | None = None


def worded(answers: Sequence[Answer], asked: Asked, model: Predictor) -> list[Any]:
    """What a request is answered: the labels of each text, or of the only one."""
    rows = [labelled(answer, asked, model) for answer in answers]
    return rows[0] if asked.single else rows


def labelled(answer: Answer, asked: Asked, model: Predictor) -> list[dict[str, Any]]:
    """The labels of one text; of one that left as unsure an empty label without a score, as in the pipeline."""
    more = {"exit_layer": answer.exit_layer, "exit_policy": answer.rung} if asked.terms.details else {}
    if np.isnan(answer.logits).any():
        return [{"label": "", "score": None, **more}]
    scores = scores_of(answer.logits, asked.function or model.activation)
    order = np.argsort(-scores, kind="stable")[: asked.top_k]
    return [{"label": model.labels[number], "score": float(scores[number]), **more} for number in order]


def scores_of(logits: np.ndarray, function: str) -> np.ndarray:
    """Logits (C,) as `pipeline` shows them: probabilities of classes or labels, or as they are."""
    logits = logits.astype(np.float64)
    if function == "none":
        return logits
    if function == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


# ---- models and their state ------------------------------------------------------------------------------------------


class Health(BaseModel):
    """`ok`, `warming` or `stopped`."""

    status: str


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


# ---- errors ----------------------------------------------------------------------------------------------------------


class Error(BaseModel):
    """Why there is no answer, and which field is wrong."""

    error: str
    error_type: str
    field: str | None = None


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
