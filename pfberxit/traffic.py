"""`pfberxit traffic`: what traffic would do to a server of a model, simulated, and beside a real one."""

from argparse import ArgumentParser
from typing import Any

from .options import add_model, add_texts
from .serve import needing_serve

HELP = "simulate traffic on a served model: latency, cores needed, what the controller does; or beside a real server"


def add_arguments(parser: ArgumentParser) -> None:
    """A model, texts like those it will be asked, and the traffic."""
    add_model(parser, "folder or Hub id of a fine-tuned model")
    add_texts(parser)
    parser.add_argument(
        "--rate", type=float, help="usual requests a second for each core (default: 60 %% of what full depth carries)"
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="of a trace (default: %(default)s)")
    parser.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="steady, diurnal, burst, flash-crowd (default: all)"
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 4], help="servers of one core (default: 1 4)")
    parser.add_argument("--differ", type=float, metavar="SHARE", help="of the answers, at most: the controller's floor")
    parser.add_argument(
        "--request-ms", type=float, default=2.0, help="of a core for HTTP and tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--times", metavar="FILE", help="what batches take; read if there is one, else measured and kept"
    )
    parser.add_argument("--url", help="of a server of this model: send it the same traffic, and show both")
    parser.add_argument("--core", type=int, help="with --url: send from this core alone")


def run(
    model: str, dataset: str, config: str | None, columns: dict[str, Any], split: str | None, rate: float | None,
    seconds: float, shapes: list[str] | None, workers: list[int], differ: float | None, request_ms: float,
    times: str | None, url: str | None, core: int | None,
) -> None:  # fmt: skip
    """Record the texts, time the model, and simulate; with a server, send it the same."""
    from dataclasses import replace

    import torch

    from modeling_pfberxit.data.texts import load_texts
    from modeling_pfberxit.model.validation import refuse
    from modeling_pfberxit.traffic import forecast, sizing
    from modeling_pfberxit.traffic.runs import as_markdown

    if core is not None and url is None:
        refuse("core", core, "given together with --url")
    chosen: dict[str, Any] = {} if shapes is None else {"shapes": [each.replace("-", " ") for each in shapes]}
    plan = sizing.Plan(rate=rate or 0.0, seconds=seconds, workers=tuple(workers), floor=differ, **chosen)
    if url is not None:
        needing_serve("traffic.load").pin(core)
    torch.set_num_threads(1)
    texts = load_texts(dataset, config, **columns, split=split)
    known = forecast.KnownModel(model)
    found = known.forecast(texts.rows, texts.names)
    for name, reason in found.ladder.left_out.items():
        print(f"{name} is no rung: {reason}")
    asked = forecast.asked_of(texts.rows, texts.names)
    machine = sizing.Machine(timed(known, asked, times), request_ms / 1000)
    if rate is None:
        plan = replace(plan, rate=usual_rate(machine, found))
    print(f"{len(texts.rows):,} texts, {plan.rate:.1f} requests/s for each core at the usual rate")
    if url is not None:
        return beside(url, asked, found, machine, plan)
    lengths = [length for length in forecast.LENGTHS if length <= known.read]
    print("\n" + sizing.sizes(sizing.capacities(machine, found.texts, found.ladder, lengths)), flush=True)
    outcomes = sizing.outcomes(machine, found.texts, found.ladder, plan)
    print("\n" + as_markdown(outcomes, ["trace", "gaps", "cores", "rung"]))


def usual_rate(machine: Any, found: Any) -> float:
    """60 % of what full depth carries in time, or of what its full batches carry; requests a second for each core."""
    carried = machine.carries(found.texts, found.ladder, "full-depth")
    if not carried:
        print("Full depth takes more than 200 ms on this core: the usual rate is 60 % of what full batches carry")
    return 0.6 * (carried or machine.most(found.texts, "full-depth"))


def timed(known: Any, texts: list[Any], path: str | None) -> Any:
    """What batches take: as a file has it, or as measured now, and kept there."""
    from pathlib import Path

    from modeling_pfberxit.traffic.batch_times import load_times, save_times

    if path is not None and Path(path).exists():
        return load_times(path)
    times = known.times(texts)
    if path is not None:
        save_times(times, path, {"threads": 1, "device": "cpu"})
    return times


def beside(url: str, texts: list[Any], found: Any, machine: Any, plan: Any) -> None:
    """Send a server each trace that was simulated, and print both."""
    from modeling_pfberxit.traffic.runs import as_markdown
    from modeling_pfberxit.traffic.side_by_side import compared

    for shape, outcomes in compared(url, texts, found, machine, plan):
        print("\n" + as_markdown({(shape, name): each for name, each in outcomes.items()}, ["trace", ""]), flush=True)
