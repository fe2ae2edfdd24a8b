"""Real traffic against a server: requests leave when their trace says so, whether or not others were answered.

Latency counts from the moment a request was due, so that a server which holds up the generator is not flattered.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import unquote
from urllib.request import urlopen

import aiohttp
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from ..model.validation import refuse
from .runs import Run

LEAD = 0.2  # seconds before the first request
CONNECTIONS = 512  # that may be open
FEW, FAR_APART = 10, 0.5  # requests by which an idle server is known, and the seconds between them


@dataclass
class Sent:
    """What a server did with the requests of a trace.

    Args:
        run: what became of each.
        beside: seconds that a request spent neither in the queue nor in its batch, (M,).
        statuses: how often each was answered; `failed`: no answer at all.
        late: seconds that the generator was behind its trace, at most; above a few milliseconds it is the bottleneck.
    """

    run: Run
    beside: np.ndarray
    statuses: Counter[int | str] = field(default_factory=Counter)
    late: float = 0.0


def pin(core: int | None) -> None:
    """Keep this process on one core; None: as it is.

    Raises:
        ValueError: a core that this process may not use, or a system that cannot pin.
    """
    if core is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        refuse("pin", core, "left out: this system does not pin processes to cores")
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        refuse("pin", core, f"a core that this process may use; there are {os.cpu_count()}, from 0")


def send(
    url: str, texts: Sequence[str | tuple[str, str]], rows: np.ndarray, arrivals: np.ndarray, seconds: float,
    answers: Sequence[str] | None = None, timeout: float = 30.0, **fields: Any,
) -> Sent:  # fmt: skip
    """Send a text at each of some moments to `POST /predict`, and wait for all answers.

    Args:
        url: of the server, without the path.
        rows: which text each request asks, (M,).
        arrivals: when, (M,), sorted, in seconds.
        seconds: that the trace lasts.
        answers: full depth's label of each text, to see which answers differ; of a classifier of single labels.
        timeout: seconds after which a request is given up.
        fields: further ones of the body.

    Raises:
        ValueError: no server answers there.
    """
    bodies = [json.dumps({"inputs": text, **fields}).encode() for text in texts]
    return asyncio.run(_send(f"{url.rstrip('/')}/predict", bodies, rows, arrivals, seconds, answers, timeout))


async def _send(
    url: str, bodies: list[bytes], rows: np.ndarray, arrivals: np.ndarray, seconds: float,
    answers: Sequence[str] | None, timeout: float,
) -> Sent:  # fmt: skip
    """`send`, in an event loop."""
    sent = Sent(replace(Run.of(arrivals, seconds), busy=np.nan), np.full(len(arrivals), np.nan))
    limit = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=limit, timeout=aiohttp.ClientTimeout(timeout)) as session:
        await greet(session, url)
        began, tasks = time.perf_counter() + LEAD, []
        for number, at in enumerate(arrivals):
            if (early := began + at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            sent.late = max(sent.late, time.perf_counter() - began - at)
            expected = None if answers is None else answers[rows[number]]
            asking = ask(session, url, bodies[rows[number]], sent, number, began + at, expected)
            tasks.append(asyncio.create_task(asking))
        await asyncio.gather(*tasks)
    return sent


async def greet(session: aiohttp.ClientSession, url: str) -> None:
    """See that a warm server is there."""
    try:
        async with session.get(url.removesuffix("/predict") + "/health") as response:
            status = response.status
    except (aiohttp.ClientError, ValueError) as error:
        refuse("url", url, f"where a server answers ({type(error).__name__})")
    if status != 200:
        refuse("url", url, f"where a server is warm; /health says {status}")


async def ask(
    session: aiohttp.ClientSession, url: str, body: bytes, sent: Sent, number: int, due: float, expected: str | None
) -> None:
    """Send one request and note what became of it."""
    try:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            found = await response.read()
            sent.statuses[response.status] += 1
            if response.status != 200:
                return
            run, headers = sent.run, response.headers
            run.latency[number] = time.perf_counter() - due
            inside = sum(float(headers.get(name, 0)) for name in ("X-Queue-Time", "X-Inference-Time"))
            sent.beside[number] = run.latency[number] - inside / 1000
            run.layers[number] = int(headers.get("X-Exit-Layer", 0))
            run.rungs[number] = unquote(headers.get("X-Exit-Policy", ""))
            run.differs[number] = expected is not None and json.loads(found)[0]["label"] != expected
    except (aiohttp.ClientError, asyncio.TimeoutError):
        sent.statuses["failed"] += 1


class RequestCost(NamedTuple):
    """What a request takes beside queue and batch, in seconds.

    Args:
        core: of the server's core, which no batch can have meanwhile.
        outside: that its client waits beyond that: the way there and back, and the client itself.
    """

    core: float
    outside: float


def request_cost(
    url: str, texts: Sequence[str | tuple[str, str]], requests: int = 200, apart: float | None = None
) -> RequestCost:
    """What a request costs, from some that meet a server which has little else to do and runs batches in one thread.

    They leave `apart` seconds from each other; None: twice as many as an answer takes, so that none waits for another.
    Where the server does not tell its CPU seconds at `/metrics`, or shares its core, so that batches last longer than
    they compute, it is taken to need its core as long as the client waits.
    """
    apart = apart or 2 * float(np.nanmedian(sent_apart(url, texts, FEW, FAR_APART).run.latency))
    before = seconds_beside_batches(url)
    beside = float(np.nanmedian(sent_apart(url, texts, requests, apart).beside))
    core = (seconds_beside_batches(url) - before) / requests
    core = min(beside, core) if core > 0 else beside
    return RequestCost(core, beside - core)


def sent_apart(url: str, texts: Sequence[str | tuple[str, str]], requests: int, apart: float) -> Sent:
    """Send texts in turn, so many seconds apart."""
    return send(url, texts, np.arange(requests) % len(texts), np.arange(requests) * apart, requests * apart)


def seconds_beside_batches(url: str) -> float:
    """CPU seconds that a server has computed so far, but those of its batches; NaN where it does not tell."""
    with urlopen(f"{url.rstrip('/')}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    cpu = [sample.value for sample in samples if sample.name == "process_cpu_seconds_total"]
    batches = [sample.value for sample in samples if sample.name == "pfberxit_batch_seconds_sum"]
    return cpu[0] - sum(batches) if cpu else float("nan")
