"""The same traffic twice: simulated, and sent to a real server, so that one sees how far the simulation is off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

from ..model.validation import refuse
from ..serving.controller import Controller, Fixed, Steering
from .forecast import Forecast
from .load import request_cost, send
from .runs import Outcome
from .sizing import Machine, Plan
from .traces import SHAPES, drawn

SIMULATED, MEASURED = "simulated", "measured"


def compared(
    url: str, texts: Sequence[str | tuple[str, str]], found: Forecast, machine: Machine, plan: Plan
) -> Iterator[tuple[str, dict[str, Outcome]]]:
    """For every shape of a plan: its name, and what was simulated and measured at one server.

    Args:
        texts: as requests send them, in the order of the forecast's.

    Raises:
        ValueError: no server answers, its rule is none of the model's rungs, or its answers are not single labels.
    """
    labels = found.single_labels()
    steer = steering_of(url, found, plan)
    cost = request_cost(url, texts)
    machine = replace(machine, request=cost.core, outside=cost.outside)
    for shape in plan.shapes:
        trace = SHAPES[shape](plan.seconds)
        arrivals = trace.arrivals(plan.rate)
        expected = Outcome.of(machine.simulator(found.texts).run(arrivals, trace.seconds, [steer()]))
        sent = send(url, texts, drawn(len(texts), len(arrivals)), arrivals, trace.seconds, labels)
        yield shape, {SIMULATED: expected, MEASURED: Outcome.of(sent.run)}


def steering_of(url: str, found: Forecast, plan: Plan) -> Callable[[], Steering]:
    """What makes what chooses rungs at a server: the controller where the plan has a floor, else its own rule."""
    if plan.floor is not None:
        return lambda: Controller(found.ladder, plan.floor, plan.reaction)
    name, rungs = info_of(url)["exit_policy"], [rung.name for rung in found.ladder]
    if name not in rungs:
        refuse("url", name, f"a server of this model, which answers by one of {rungs}")
    return lambda: Fixed(found.ladder, name)


def info_of(url: str) -> dict[str, Any]:
    """`GET /info`; raises a ValueError where no server answers."""
    try:
        with urlopen(f"{url.rstrip('/')}/info", timeout=10) as response:
            return json.load(response)
    except (OSError, ValueError) as error:
        refuse("url", url, f"where a server of `pfberxit serve` answers ({type(error).__name__})")
