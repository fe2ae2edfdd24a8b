"""Where the time of a call goes: layers, exits, criterion, and what lies between them.

Python's own profiler times the calls of our functions, not those of torch, which costs a few per cent. Each table ends
with the stock model's time for the layers that were run: less than that is an efficiency above 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from cProfile import Profile
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from itertools import product
from pathlib import Path
from pkgutil import resolve_name
from statistics import median
from types import CodeType
from typing import Any

import torch

from ..evaluation.tables import table
from ..evaluation.timing import interleaved
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .baselines import OURS, SHORT_CUTS, answers_of, with_short_cuts
from .speed import models_and_workloads, run_batches, run_predict
from .workload import Workload

# The function of the model whose time a part is, and its caller where only that one's calls count.
PARTS: dict[str, tuple[str, str | None]] = {
    "embeddings": ("backbones:embed", None),
    "whole layers": ("loop:Loop.run_layer", None),
    "layers for the exit's token": ("layers:Sublayers.begin", "loop:Loop.run_first_positions"),
    "those layers for the rows that stay": ("layers:Sublayers.finish", "loop:Loop.step"),
    "exits": ("exits:Exits.forward", None),
    "criterion": ("loop:Loop.decide", None),
    "rows that leave": ("rows:Rows.select", "loop:Loop.step"),
    "rows that wait": ("streams:Stream.enqueue", None),
    "rows that join": ("rows:Rows.cat", None),
    "whether token first pays": ("loop:Loop.token_first_pays", None),
}


@dataclass(frozen=True)
class Part:
    """A part of the time of a workload."""

    name: str
    calls: float  # in one pass over the workload
    ms: float  # per row


@torch.inference_mode()
def profile(call: Callable[[], object], rows: int, repeats: int) -> list[Part]:
    """The parts of a call that runs so many rows, mean over repeats; what belongs to none of them comes last."""
    codes = {part: (code_of(name), caller and code_of(caller)) for part, (name, caller) in PARTS.items()}
    call()
    profiler = Profile(builtins=False)
    for _ in range(repeats):
        profiler.runcall(call)
    entries = profiler.getstats()
    total = {entry.code: (entry.callcount, entry.totaltime) for entry in entries}
    below = {entry.code: {c.code: (c.callcount, c.totaltime) for c in entry.calls or ()} for entry in entries}
    parts, times = [], 1000 / rows / repeats
    for part, (code, caller) in codes.items():
        calls, seconds = (below.get(caller, {}) if caller else total).get(code, (0, 0.0))
        parts.append(Part(part, calls / repeats, seconds * times))
    whole = max(seconds for _, seconds in total.values()) * times
    return [*parts, Part("everything else", 1, whole - sum(part.ms for part in parts))]


def code_of(name: str) -> CodeType:
    """The code of a function of the model room, by which the profiler knows it.

    Raises:
        ValueError: there is no function of this name; it was moved or renamed, and `PARTS` was not.
    """
    try:
        return unwrap(resolve_name(f"modeling_pfberxit.model.{name}")).__code__
    except (ImportError, AttributeError) as error:
        raise ValueError(f"PARTS of {__name__} times {name!r}, which is not in modeling_pfberxit.model.") from error


def run_profile(
    saved: list[float], repeats: int, output: str | None, say: Callable[[str], None], **setting: Any
) -> str:
    """`pfberxit benchmark --profile`: our default alone."""
    text = profiles(*models_and_workloads(**setting), saved, repeats, say)
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        (Path(output) / "profile.md").write_text(text + "\n", encoding="utf-8")
    return text


def profiles(
    stock: torch.nn.Module, ours: PFBerxitForSequenceClassification, workloads: Sequence[Workload],
    saved: Sequence[float], repeats: int, say: Callable[[str], None],
) -> str:  # fmt: skip
    """Tables for every workload and share of layers to save; `say` is called with each as it is finished."""
    tables = []
    for workload, goal in product(workloads, saved):
        for text in tables_of(stock, ours, workload, goal, repeats):
            tables.append(text)
            say(text + "\n")
    return "\n\n".join(tables)


def tables_of(
    stock: torch.nn.Module, ours: PFBerxitForSequenceClassification, workload: Workload, goal: float, repeats: int
) -> Iterator[str]:
    """One table for a call per batch and, at batch sizes above 1, one for `predict`."""
    parts, rows = workload.batches(str(ours.device)), len(workload.rows)
    policy, left = workload.policy(goal)
    answer = with_short_cuts(ours, SHORT_CUTS[OURS], policy, workload.recording)
    calls: dict[str, Callable[[], object]] = {"a call": partial(run_batches, answer, parts)}
    if workload.size > 1:
        calls["predict"] = partial(run_predict, ours, workload, policy)
    times = interleaved([partial(run_batches, answers_of(stock), parts), *calls.values()], repeats, warmups=1)
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
    """One line per part, their sum, and two times a row in milliseconds.

    Args:
        allowed: of the stock model for as many layers.
        measured: of the call without the profiler.
    """
    total = sum(part.ms for part in parts)
    rows = [[part.name, f"{part.calls:g}", f"{part.ms:.3f}", f"{100 * part.ms / total:.1f} %"] for part in parts]
    rows.append(["all, with the profiler", "", f"{total:.3f}", "100 %"])
    rows.append(["without it", "", f"{measured:.3f}", ""])
    rows.append(["stock model's time for as many layers", "", f"{allowed:.3f}", ""])
    return table(["", "calls", "ms/row", "share"], rows)
