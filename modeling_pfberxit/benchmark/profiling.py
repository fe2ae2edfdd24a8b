"""Where the time of a call goes: layers, exits, criterion, and what lies between them.

Python's own profiler counts the calls of our functions, not those of torch, which costs a few hundredths of the time.
The stock model's time for the layers that were run stands below: less than that is an efficiency above 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from cProfile import Profile
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from types import CodeType
from typing import Any

import torch

from ..evaluation.tables import header, line
from ..evaluation.timing import interleaved
from ..model.backbones import embed
from ..model.exits import Exits
from ..model.loop import Loop, begin, finish
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.rows import Rows
from ..model.streams import Stream
from .baselines import OURS, SHORT_CUTS, answers_of, with_short_cuts
from .speed import contest, run, stream
from .workload import Script, Workload

# What is counted, and by whom it was called where only those calls count.
PARTS: dict[str, tuple[Callable, Callable | None]] = {
    "embeddings": (embed, None),
    "whole layers": (Loop.run_layer, None),
    "layers for the exit's token": (begin, None),
    "those layers for the rows that stay": (finish, Loop.step),
    "exits": (Exits.forward, None),
    "criterion": (Loop.decide, None),
    "rows that leave": (Loop.drop_exited, None),
    "rows that wait": (Stream.enqueue, None),
    "rows that join": (Rows.cat.__func__, None),
    "whether token first pays": (Loop.token_first_pays, None),
}


@dataclass(frozen=True)
class Part:
    """A part of all calls of a workload: how often, and milliseconds a row."""

    name: str
    calls: float
    ms: float


@torch.inference_mode()
def profile(call: Callable[[], object], rows: int, repeats: int) -> list[Part]:
    """The parts of a call that treats so many rows, mean over repeats; what is none of them comes last."""
    call()
    profiler = Profile(builtins=False)
    for _ in range(repeats):
        profiler.runcall(call)
    stats = {entry.code: entry for entry in profiler.getstats()}
    times = 1000 / rows / repeats
    parts = []
    for name, (function, caller) in PARTS.items():
        calls, seconds = counted(stats, function.__code__, caller and caller.__code__)
        parts.append(Part(name, calls / repeats, seconds * times))
    everything = stats[call.func.__code__].totaltime * times
    return [*parts, Part("everything else", 1, everything - sum(part.ms for part in parts))]


def counted(stats: dict[CodeType, object], code: CodeType, caller: CodeType | None) -> tuple[int, float]:
    """How often a function was called, and the seconds until it returned; by a certain caller, where one is given."""
    entries = stats.values() if caller is None else (stats[caller].calls or () if caller in stats else ())
    return next(((entry.callcount, entry.totaltime) for entry in entries if entry.code is code), (0, 0.0))


def run_profile(
    saved: list[float], rivals: bool, compiled: bool, repeats: int, output: str | None, **setting: Any
) -> str:
    """`pfberxit benchmark --profile`; our default alone, whatever `rivals` and `compiled` say."""
    text = profiles(*contest(**setting), saved, repeats)
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "profile.md").write_text(text + "\n", encoding="utf-8")
    return text


def profiles(
    stock: torch.nn.Module, ours: PFBerxitForSequenceClassification, workloads: Sequence[Workload],
    saved: Sequence[float], repeats: int,
) -> str:  # fmt: skip
    """A table for every workload and share of layers to save; printed as they are finished."""
    tables = []
    for workload, goal in product(workloads, saved):
        for table in tables_of(stock, ours, workload, goal, repeats):
            tables.append(table)
            print(table + "\n", flush=True)
    return "\n\n".join(tables)


def tables_of(
    stock: torch.nn.Module, ours: PFBerxitForSequenceClassification, workload: Workload, goal: float, repeats: int
) -> Iterator[str]:
    """One table for a call per batch, and one for `predict` where there are batches to speak of."""
    parts, rows, script = workload.batches(str(ours.device)), len(workload.rows), Script(workload.recording)
    policy, left = workload.policy(goal)
    calls = {"a call": partial(run, with_short_cuts(ours, SHORT_CUTS[OURS], policy, script), parts)}
    if workload.size > 1:
        calls["predict"] = partial(stream, ours, workload, policy, script)
    times = interleaved([partial(run, answers_of(stock), parts), *calls.values()], repeats, warmups=1)
    stock_ms, *own = (1000 * median(each) / rows for each in times)
    share = left.double().mean().item() / len(ours.depths)
    lengths = torch.tensor([len(row) for row in workload.rows])
    of_tokens = (left * lengths).sum().item() / lengths.sum().item() / len(ours.depths)
    for (name, call), ms in zip(calls.items(), own, strict=True):
        title = f"batch {workload.size}, {workload.name}, {name}: {100 * (1 - share):.0f} % of the layers saved"
        if len(lengths.unique()) > 1:
            title += f", {100 * (1 - of_tokens):.0f} % of the tokens' layers"
        yield f"**{title}**\n\n{as_table(profile(call, rows, repeats), stock_ms * share, ms)}"


def as_table(parts: list[Part], allowed: float, measured: float) -> str:
    """One line per part, then their sum, the time without the profiler, and the stock model's for as many layers."""
    total = sum(part.ms for part in parts)
    lines = [header(["", "calls", "ms/row", "share"])]
    lines += [
        line([part.name, f"{part.calls:g}", f"{part.ms:.3f}", f"{100 * part.ms / total:.1f} %"]) for part in parts
    ]
    lines.append(line(["all, with the profiler", "", f"{total:.3f}", "100 %"]))
    lines.append(line(["without it", "", f"{measured:.3f}", ""]))
    return "\n".join([*lines, line(["stock model's time for as many layers", "", f"{allowed:.3f}", ""])])
