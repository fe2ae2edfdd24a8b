"""From a model to a server: predictor, rule, further adapters, limits, and uvicorn in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from ..evaluation.saved_model import load_model, tokens_read
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import above_zero, optional, real, refuse, whole
from . import tracing
from .app import guarded, make_app
from .batching import Limits
from .calls import Meter, Point, Predictor, Served
from .connections import limited_protocol
from .controller import Controller, Fixed, Reaction, Steering
from .engine import Engine
from .ladder import FULL, Ladder, ladder_of
from .limits import HttpLimits, crowded
from .models import DEFAULT, Models
from .predictors import OnnxPredictor, TorchPredictor
from .service import Service
from .watching import CertificateWatcher

DREW = 0.01  # of the rows, to be held against full depth


@dataclass(frozen=True)
class Rule:
    """How rows leave whose request does not say, and who looks after that.

    Args:
        policy: an operating point's name or fields of a policy; None: each model's own rule.
        differ: instead of a policy: move along the certified points by queue age, as far as this share of answers may
            differ from full depth's.
        step: the queue age in seconds from which the next point answers.
        watch: the share of rows that certified points answered which are held against full depth; None: 1 % where a
            model has such points.
    """

    policy: str | Mapping[str, Any] | None = None
    differ: float | None = None
    step: float | None = None
    watch: float | None = None

    def __post_init__(self) -> None:
        optional(real(0.0, 1.0))("differ", self.differ)
        optional(real(0.0, 1.0))("watch", self.watch)
        if self.policy is not None and self.differ is not None:
            refuse("differ", self.differ, "left out with a policy, which stays as it is")
        if self.step is not None and self.differ is None:
            refuse("step", self.step, "given together with differ: nothing moves without it")

    def served(self, name: str, predictor: Predictor) -> Served:
        """A model under its name and this rule; raises a ValueError where it cannot follow it."""
        point, ladder = predictor.point(self.policy), ladder_of(predictor.points, predictor.facts)
        certified = FULL in predictor.known and len(ladder) > 1
        self.check(name, point, ladder, certified)
        watcher = CertificateWatcher(ladder, predictor.activation, DREW if self.watch is None else self.watch)
        return Served(
            name, predictor, point, self.controller(ladder, point) if certified else None,
            watcher if certified else None, ladder.left_out,
        )  # fmt: skip

    def check(self, name: str, point: Point, ladder: Ladder, certified: bool) -> None:
        """Refuse what a model without certified points, or under a rule that promises nothing, cannot do."""
        for option in ("differ", "watch"):
            if getattr(self, option) is not None and not certified:
                why = "; ".join(f"{each}: {reason}" for each, reason in ladder.left_out.items()) or "it has no points"
                refuse(option, getattr(self, option), f"left out: {name} has no certified points ({why})")
        if self.watch is not None and self.differ is None and point.name not in promised(ladder):
            refuse("watch", self.watch, f"left out where {point.name} answers, or given with a rule that promises "
                   f"something: differ, or one of {', '.join(promised(ladder))}")  # fmt: skip

    def controller(self, ladder: Ladder, point: Point) -> Steering | None:
        """Who chooses the rung: by queue age, or always the one that is the rule; None where the rule is none."""
        if self.differ is not None:
            return Controller(ladder, self.differ, None if self.step is None else Reaction(self.step))
        return Fixed(ladder, point.name) if point.name in [rung.name for rung in ladder] else None


def promised(ladder: Ladder) -> list[str]:
    """The rungs whose answers can be held against full depth's."""
    return [rung.name for rung in ladder if rung.epsilon]


@dataclass(frozen=True)
class Loading:
    """How models are loaded.

    Args:
        max_length, device, dtype: as `load_model` and `tokens_read` take them.
    """

    max_length: int | None = None
    device: str | None = None
    dtype: str | None = None

    def first(self, model: str) -> TorchPredictor:
        """A saved model, with an encoder of its own."""
        loaded, tokenizer = load_model(model, self.device, self.dtype)
        return TorchPredictor(loaded, tokenizer, tokens_read(loaded, tokenizer, self.max_length))

    def adapter(self, folder: str, first: PFBerxitForSequenceClassification) -> TorchPredictor:
        """A saved model on another one's encoder; raises a ValueError where it was trained on another encoder."""
        loaded, tokenizer = load_model(folder, str(first.device), self.dtype, backbone=first.backbone)
        return TorchPredictor(loaded, tokenizer, tokens_read(loaded, tokenizer, self.max_length))


def make_service(
    first: Predictor, rule: Rule, loading: Loading, more: Mapping[str, str], root: str | None = None,
    limits: Limits | None = None, http: HttpLimits | None = None, meter: Meter | None = None,
) -> Service:  # fmt: skip
    """A service that has not begun.

    Args:
        first: what answers requests that name no model.
        more: further adapters on its encoder, their folders by name.
        root: the folder that adapters may be loaded from while it serves.
    """
    limits, http = limits or Limits(), http or HttpLimits()
    if http.texts > limits.queue:
        refuse("queue", limits.queue, f"at least {http.texts}, the texts of one request")
    load = None
    if isinstance(first, TorchPredictor):
        encoder = first.model

        def load(name: str, folder: str) -> Served:
            return rule.served(name, loading.adapter(folder, encoder))

    models = Models(Engine(limits, meter), rule.served(DEFAULT, first), load, root)
    for name, folder in more.items():
        models.add(name, folder)
    return Service(models.engine, models, http, meter)


def open_file(classifier: Any, loading: Loading) -> OnnxPredictor:
    """An exported file as a predictor; refuses options that only a saved model has."""
    for name, value in vars(loading).items():
        if value is not None:
            refuse(name, value, "left out: an exported file has its own, and runs on the CPU")
    return OnnxPredictor(classifier)


@dataclass(frozen=True)
class Place:
    """Where a server listens, and how long it takes leave.

    Args:
        drain: seconds in which open requests are answered after SIGTERM.
        trace: whether requests are OpenTelemetry spans.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain: int = field(default=30)
    trace: bool = False

    def __post_init__(self) -> None:
        whole(0, 65535)("port", self.port)
        above_zero("drain", whole(1)("drain", self.drain))


def server_of(service: Service, place: Place) -> uvicorn.Server:
    """The server; `run` serves until SIGTERM or SIGINT. Nothing of a request is logged, its path least of all."""
    app: Any = guarded(make_app(service, place.drain), service)
    if place.trace:
        app = tracing.Traced(app, tracing.exporting())
    config = uvicorn.Config(
        app, host=place.host, port=place.port, access_log=False,
        http=limited_protocol(service.limits.upload, service.limits.connections, crowded(service.meter)), ws="none",
        timeout_graceful_shutdown=place.drain, server_header=False, proxy_headers=False, log_level="info",
    )  # fmt: skip
    return uvicorn.Server(config)
