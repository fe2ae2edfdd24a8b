"""`POST /layers`: what every layer answers to one text, and where it leaves under each threshold and patience."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from ..evaluation.recording import Recording, record
from ..evaluation.walk import Outcome, Walk, walk
from ..model.criteria import able, check_evidence, check_fit, rule_of
from ..model.evidence import EMITTED_BY
from ..model.exit_policy import FULL_DEPTH, ExitPolicy, configured_policy, requested_policy
from ..model.losses import problem_type_of
from ..model.steps import one_by_one
from ..model.streams import pad_rows
from .answers import errors, scores_of
from .bodies import TEXT, TWO, Asked, Invalid, Terms, parsed, taking, text_or_two
from .calls import Point, Served, Tokens
from .ladder import FULL
from .outcomes import Busy, Failed, Late
from .predictors import OWN, TorchPredictor
from .routes import missing
from .service import Service

TOGETHER = 2  # texts that may be on their way at once: each costs a batch of its own, at full depth
MEASURES = {
    "patience": "distance", "entropy": "entropy", "max_prob": "certainty", "lte": "doubt", "window": "entropy",
    "pcee": "entropy", "distance": "doubt", "voting": "share of votes", "beem": "sum of certainties", "cap": "doubt",
}  # fmt: skip
Number = float | str | None  # `Infinity` and `-Infinity`, as protobuf's JSON has them; null: there is none


class Layers(BaseModel):
    """One text's way through all layers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[Any, WithJsonSchema({"anyOf": [TEXT, TWO]})] = Field(
        description="a text, or two as {text, text_pair}"
    )
    exit_policy: str | dict[str, Any] | None = Field(
        None, description="an operating point's name, `default`, `full-depth`, or fields of a policy"
    )


class Exit(BaseModel):
    """What one exit gives: scores of the labels, and what its rule holds against tau."""

    layer: int
    probabilities: list[float]
    scores: list[Number]


class Leaving(BaseModel):
    """After which layer a text leaves, and with which scores of the labels; null: as unsure."""

    exit_layer: int
    probabilities: list[float] | None


class Walked(BaseModel):
    """A text's walk: `decisions[row of patiences][column of thresholds]` are numbers of `outcomes`, `own` the policy's.

    A column holds above the threshold before it, up to its own; the last one above all thresholds.
    """

    policy: dict[str, Any]
    when: str
    measure: str
    above: bool
    by_label: bool
    rules: list[str]
    activation: str
    tokens: int
    exits: list[Exit]
    outcomes: list[Leaving]
    own: int
    thresholds: list[float]
    patiences: list[int]
    decisions: list[list[int]]


def layers_of(service: Service) -> APIRouter:
    """The route, for the first model and by name."""
    router, respond = APIRouter(), walking(service)
    documented: dict[str, Any] = {
        "methods": ["POST"], "summary": (Layers.__doc__ or "").strip(), "openapi_extra": taking(Layers),
        "responses": errors(400, 404, 408, 413, 422, 429, 500, 501, 503, 504),
    }  # fmt: skip

    async def first(request: Request) -> Walked:
        return await respond(request, service.models.first.name)

    router.add_api_route("/layers", first, **documented)
    router.add_api_route("/models/{name}/layers", respond, **documented)
    return router


def walking(service: Service) -> Callable[[Request, str], Awaitable[Walked]]:
    """The route's function. The engine's thread runs the model; what follows from its logits does not hold it up."""
    free = asyncio.Semaphore(TOGETHER)

    async def respond(request: Request, name: str) -> Walked:
        """What each exit of a model answers to the text of a body."""
        served = service.models.get(name) or missing()
        asked = parsed(Layers, await request.body())
        predictor = showing(served)
        policy = policy_of(predictor, served.rule, asked.exit_policy)
        texts = Asked([text_or_two(asked.inputs, "inputs")], True, True, None, None, Terms())
        service.check_size(texts)
        if free.locked():
            raise Busy(1)
        async with free:
            tokens = (await service.tokens(texts, served))[0]
            recording = await recorded(service, predictor, tokens)
            found = await asyncio.to_thread(walk, recording, policy)
            return described(found, predictor, policy, len(tokens["input_ids"]))

    return respond


def showing(served: Served) -> TorchPredictor:
    """The predictor of a model whose layers can be seen."""
    if not isinstance(served.predictor, TorchPredictor):
        raise Invalid("must be a saved model: an exported file does not show its layers", "name", 501)
    return served.predictor


async def recorded(service: Service, predictor: TorchPredictor, tokens: Tokens) -> Recording:
    """The evidence of all exits, by the engine's thread.

    Raises:
        outcomes.Closed, Late, Failed: there is none.
    """
    done = asyncio.wrap_future(service.engine.call(partial(recording_of, predictor, tokens)))
    try:
        return await asyncio.wait_for(done, service.limits.deadline)
    except asyncio.TimeoutError:
        raise Late("the deadline has passed") from None
    except (RuntimeError, ValueError, IndexError):  # what it says may hold a part of a text
        raise Failed("the model could not answer") from None


def recording_of(predictor: TorchPredictor, tokens: Tokens) -> Recording:
    """One row, at full depth."""
    row = {name: torch.tensor(ids) for name, ids in tokens.items()}
    model = predictor.model
    return record(model, [pad_rows([row], model.config.pad_token_id or 0, model.device)], progress=False)


def policy_of(predictor: TorchPredictor, point: Point, asked: str | dict[str, Any] | None) -> ExitPolicy:
    """The policy that is asked for, or the server's `point`; also where it lacks the threshold that it needs."""
    config, exits = predictor.model.config, predictor.model.exit_depths
    try:
        if asked is None and point.name != OWN:
            return point.policy
        if asked == FULL:
            return FULL_DEPTH
        policy = configured_policy(config) if asked in (None, OWN) else requested_policy(asked, config)
        if policy.criterion is not None:
            check_fit(policy, exits, problem_type_of(config))
            check_evidence(policy, config, problem_type_of(config))
        return policy
    except (ValueError, TypeError) as error:
        raise Invalid(str(error)[:500], "exit_policy") from None


# ---- in JSON ---------------------------------------------------------------------------------------------------------


def described(found: Walk, predictor: TorchPredictor, policy: ExitPolicy, tokens: int) -> Walked:
    """A walk with what is needed to show it."""
    rule, config = rule_of(policy), predictor.model.config
    problem_type, scored = problem_type_of(config), partial(shares, function=predictor.activation)
    return Walked(
        policy=policy.stated(),
        when=rule.when,
        measure="divergence" if "divergence" in rule.reads(policy) else MEASURES.get(policy.criterion or "", ""),
        above=rule.leaves_above,
        by_label=one_by_one(policy, problem_type),
        rules=able(problem_type, [name for name in EMITTED_BY if getattr(config, name)]),
        activation=predictor.activation,
        tokens=tokens,
        exits=[
            Exit(layer=layer, probabilities=scored(logits) or [], scores=[number(score) for score in scores])
            for layer, logits, scores in zip(found.layers, found.logits, found.scores)
        ],
        outcomes=[leaving(outcome, scored) for outcome in found.outcomes],
        own=found.own,
        thresholds=list(found.thresholds),
        patiences=list(found.patiences),
        decisions=[list(row) for row in found.decisions],
    )


def leaving(outcome: Outcome, scored: Callable[[Any], list[float] | None]) -> Leaving:
    """An outcome, its logits as scores of the labels."""
    return Leaving(exit_layer=outcome.exit_layer, probabilities=scored(outcome.logits))


def shares(logits: Any, function: str) -> list[float] | None:
    """Scores of the labels from logits (C,); None where there is no answer."""
    logits = np.asarray(logits, dtype=np.float32)
    return None if np.isnan(logits).any() else scores_of(logits, function).tolist()


def number(score: float) -> Number:
    """A score as JSON can hold it."""
    if math.isnan(score):
        return None
    return score if math.isfinite(score) else f"{'-' if score < 0 else ''}Infinity"
