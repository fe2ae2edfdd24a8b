"""Ray Serve: the same application as `pfberxit serve` in as many replicas as the traffic needs.

`serve run modeling_pfberxit.serving.ray:app model=FOLDER`, or a config file (examples/ray/serve.yaml). A request that
bears an `Idempotency-Key` is answered once, however often it is sent and whichever replica dies.
"""

import os
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field
from ray import cloudpickle, serve
from ray.exceptions import RayError
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from ..model.validation import above_zero, refuse, whole
from .app import guarded, make_app
from .batching import Limits
from .cluster import ledger
from .cluster.data import PFBerxitPredictor, predict_parquet
from .cluster.ledger import Kept
from .cluster.meter import RayMeter
from .cluster.one_answer import OneAnswer
from .limits import Guard, HttpLimits, Refused
from .models import run_first_batches
from .service import Service
from .start import Loading, Rule, make_service

__all__ = ["Answers", "PFBerxitPredictor", "Settings", "app", "predict_parquet"]
MODEL, TOKEN = "PFBERXIT_MODEL", "PFBERXIT_TOKEN"  # in the environment
Kind = TypeVar("Kind")


class Settings(BaseModel):
    """The arguments of `app`, in a config file below `args`; no others are taken."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("", description="a folder that every node has, or a Hub id; default: $PFBERXIT_MODEL")
    adapters: dict[str, str] = Field({}, description="further adapters on the same encoder, their folders by name")
    rule: dict[str, Any] = Field({}, description="fields of `start.Rule`: policy, differ, step, watch")
    loading: dict[str, Any] = Field({}, description="fields of `start.Loading`: max_length, device, dtype")
    limits: dict[str, Any] = Field({}, description="fields of `batching.Limits`: tokens, rows, wait, queue")
    http: dict[str, Any] = Field(
        {}, description="fields of `limits.HttpLimits` but the token, which is $PFBERXIT_TOKEN"
    )
    ledger: dict[str, Any] = Field({}, description="fields of `LedgerSettings`: path, seconds, kept")


def made(kind: type[Kind], name: str, given: dict[str, Any]) -> Kind:
    """A dataclass from the fields that are given; refuses others by name."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for other in given.keys() - set(known):
        refuse(f"{name}.{other}", given[other], f"left out: {name} has {', '.join(known)}")
    return kind(**given)


@dataclass(frozen=True)
class LedgerSettings:
    """How long answers are remembered, and how many; as `Ledger` takes it."""

    path: str = ":memory:"
    seconds: float = 300.0
    kept: int = 200_000

    def __post_init__(self) -> None:
        above_zero("ledger.seconds", self.seconds)
        whole(1)("ledger.kept", self.kept)


cloudpickle.register_pickle_by_value(ledger)  # its process does not import this package, and torch with it
LedgerDeployment: Any = serve.deployment(
    ledger.LedgerProcess, name="ledger", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10_000,
    health_check_period_s=2,
)  # fmt: skip


class RemoteLedger:
    """The ledger, as replicas see it. While it restarts, requests that bear an id are refused."""

    def __init__(self, ledger: DeploymentHandle) -> None:
        self.ledger = ledger

    async def find(self, id: str) -> Kept | None:
        """As `Ledger.find`."""
        found = await self.answered(self.ledger.find.remote(id))
        return found and Kept(*found)

    async def accept(self, id: str, answer: Kept) -> Kept:
        """As `Ledger.accept`."""
        return Kept(*await self.answered(self.ledger.accept.remote(id, tuple(answer))))

    async def answered(self, answer: Any) -> Any:
        """What it answers."""
        try:
            return await answer
        except RayError:
            headers = {"Retry-After": "1"}
            raise Refused(503, "the ledger of accepted answers is away", "Unhealthy", **headers) from None


@serve.deployment(name="answers", max_ongoing_requests=2048, ray_actor_options={"num_cpus": 1})
@serve.ingress()
class Answers:
    """A replica: an engine, its queue and its models, whose weights are pages that all replicas of a node share."""

    def __init__(self, settings: Settings, ledger: DeploymentHandle) -> None:
        self.ledger, self.meter = RemoteLedger(ledger), RayMeter()
        loading, http = made(Loading, "loading", settings.loading), {**settings.http, "token": os.environ.get(TOKEN)}
        first: Any = loading.first(settings.model)
        self.service: Service = make_service(
            first, made(Rule, "rule", settings.rule), loading, settings.adapters,
            limits=made(Limits, "limits", settings.limits), http=made(HttpLimits, "http", http), meter=self.meter,
        )  # fmt: skip
        for served in self.service.models:
            run_first_batches(self.service.engine, served)
        self.service.models.fixed = True
        self.service.models.was_warmed()

    def __serve_build_asgi_app__(self) -> Guard:
        """What answers HTTP."""
        return guarded(OneAnswer(make_app(self.service), self.ledger), self.service)

    def check_health(self) -> None:
        """Raise if the engine has ended, so that the replica is replaced."""
        engine = self.service.engine
        if engine.thread.ident is not None and not engine.thread.is_alive():
            raise RuntimeError("the engine has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `cluster.queue_age.QueueAge` reads."""
        return self.meter.load()


def app(args: Settings) -> Application:
    """The application, checked as far as it can be without the model.

    Raises:
        ValueError: no model is named; a field that is not known or has a value that is not allowed.
    """
    settings = args.model_copy(update={"model": args.model or os.environ.get(MODEL, "")})
    if not settings.model:
        refuse("model", "", f"a folder or Hub id, in the arguments or in ${MODEL}")
    if "token" in settings.http:
        refuse("http.token", "...", f"left out: no secret in a file, but ${TOKEN} in the environment")
    for kind, name in ((Rule, "rule"), (Loading, "loading"), (Limits, "limits"), (HttpLimits, "http")):
        made(kind, name, getattr(settings, name))
    kept = made(LedgerSettings, "ledger", settings.ledger)
    return cast(Deployment, Answers).bind(settings, LedgerDeployment.bind(kept.path, kept.seconds, kept.kept))
