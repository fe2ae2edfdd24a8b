"""Speed against the stock `transformers` model of the same encoder, measured in turn within one run, as ratios.

* overhead: the time at full depth, with adapters and all exits, over the stock model's;
* efficiency: wall-clock speed-up over layer speed-up. At 1.0 every layer saved shows on the clock.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from ..evaluation.tables import table
from ..evaluation.timing import interleaved, median_ratio
from ..model.execution import Execution
from ..model.exit_policy import FULL_DEPTH, ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification, PFBerxitOutput
from .baselines import (
    COMPILED,
    OURS,
    SHORT_CUTS,
    Answer,
    answers_of,
    configuration,
    in_onnx_runtime,
    shallower,
    stock_and_ours,
    with_short_cuts,
)  # fmt: skip
from .scripted import scripted
from .workload import Batch, Workload, of_one_length, of_recorded_lengths, recorded, settled


@dataclass(frozen=True)
class Line:
    """A measured case."""

    batch: int
    workload: str
    case: str
    saved: float  # share of the layers
    stock_ms: float  # per row
    ms: float  # per row
    speed_up: float  # over the stock model: the median of ratios taken pair by pair
    over_full: float | None = None  # of an exported file, the same over ONNX Runtime at full depth

    @property
    def efficiency(self) -> float:
        """Wall-clock speed-up over layer speed-up."""
        return (self.speed_up if self.over_full is None else self.over_full) * (1 - self.saved)


@dataclass(frozen=True)
class Case:
    """What is timed: one pass over a workload, and the share of the layers it saves."""

    name: str
    saved: float
    call: Callable[[], object]
    full: str | None = None  # of an exported file, the case at full depth that it is held against


def run_benchmark(
    saved: list[float], rivals: bool, compiled: bool, repeats: int, output: str | None, say: Callable[[str], None],
    **setting: Any,
) -> list[Line]:  # fmt: skip
    """`pfberxit benchmark`; `setting` as `models_and_workloads` takes it."""
    stock, ours, workloads = models_and_workloads(**setting)
    lines = benchmark(stock, ours, workloads, saved, repeats, say, rivals, compiled)
    say("\n" + as_markdown(lines))
    if output:
        layout = "{pooling} exits, {sublearner} adapters" if not setting["paper"] else "the preset's exits"
        where = f"{layout}; {{device}}, {{dtype}}, {torch.get_num_threads()} threads"
        save(lines, output, ("{preset}, " + where).format(**setting))
    return lines


def models_and_workloads(
    preset: str, layers: int | None, paper: bool, pooling: str, sublearner: str, batch_sizes: list[int],
    lengths: list[int], recordings: list[str], mix_rows: int, device: str, dtype: str,
) -> tuple[PreTrainedModel, PFBerxitForSequenceClassification, list[Workload]]:  # fmt: skip
    """The stock model, ours, and what they run on, from the options of the command line."""
    depth = configuration(preset, layers).encoder_config().num_hidden_layers
    source = recorded(recordings, depth) if recordings else settled(depth)
    layout: dict[str, Any] = {"paper": True} if paper else {"exit_pooling": pooling, "adapter_sublearner": sublearner}
    layout["exit_layers"] = source.exit_depths
    stock, ours = stock_and_ours(preset, device, getattr(torch, dtype), layers, **layout)
    words = stock.config.vocab_size
    workloads = [of_one_length(source, batch, length, words) for batch in batch_sizes for length in lengths]
    if recordings:
        workloads += [of_recorded_lengths(source, batch, mix_rows, words) for batch in batch_sizes if batch > 1]
    return stock, ours, workloads


def benchmark(
    stock: torch.nn.Module, ours: PFBerxitForSequenceClassification, workloads: Sequence[Workload],
    saved: Sequence[float], repeats: int, say: Callable[[str], None], rivals: bool = True, compiled: bool = False,
) -> list[Line]:  # fmt: skip
    """Time all cases; those of one workload run in turn.

    Args:
        saved: shares of the layers to save.
        say: called with what is timed, and with a table for every workload.
        rivals: time ONNX Runtime as well, where it is installed.
        compiled: time the stock model and ours under `torch.compile` as well.
    """
    others, short_cuts = in_onnx_runtime(stock) if rivals else {}, SHORT_CUTS
    if compiled:
        others["stock, compiled"] = answers_of(torch.compile(stock, dynamic=True))
        short_cuts = SHORT_CUTS | COMPILED
    lines: list[Line] = []
    for number, workload in enumerate(workloads, start=1):
        say(f"[{number}/{len(workloads)}] batch {workload.size}, {workload.name} ...")
        cases = cases_of(stock, ours, workload, saved, others, short_cuts)
        lines += timed(stock, workload, cases, repeats)
        say(as_markdown(lines[-len(cases) :]))
    return lines


def timed(
    stock: torch.nn.Module, workload: Workload, cases: Sequence[Case], repeats: int, settled: bool = False
) -> list[Line]:
    """All cases of one workload and the stock model, in turn; `settled` as `interleaved` takes it."""
    parts, rows = workload.batches(str(next(stock.parameters()).device)), len(workload.rows)
    calls = [partial(run_batches, answers_of(stock), parts), *(case.call for case in cases)]
    stock_times, *others = interleaved(calls, repeats, warmups=0 if settled else 1, settled=settled)
    times = {case.name: own for case, own in zip(cases, others, strict=True)}
    lines = []
    for case in cases:
        own = times[case.name]
        stock_ms, ms = (1000 * median(each) / rows for each in (stock_times, own))
        over_full = None if case.full is None else median_ratio(times[case.full], own)
        ratio = median_ratio(stock_times, own)
        lines.append(Line(workload.size, workload.name, case.name, case.saved, stock_ms, ms, ratio, over_full))
    return lines


def run_batches(answer: Answer, parts: list[Batch]) -> list[torch.Tensor]:
    """The logits of all batches, one call each."""
    return [answer(part) for part in parts]


def cases_of(
    stock: torch.nn.Module, ours: PFBerxitForSequenceClassification, workload: Workload, saved: Sequence[float],
    others: dict[str, Answer], short_cuts: dict[str, Execution],
) -> list[Case]:  # fmt: skip
    """The other models, ours at full depth, and ours and a shallower model at every share of layers to save."""
    parts, recording, layers = workload.batches(str(ours.device)), workload.recording, len(ours.depths)
    cases = [Case(name, 0.0, partial(run_batches, answer, parts)) for name, answer in others.items()]
    for name in [name for name in short_cuts if name in ("rows leave", "and token first", OURS, *COMPILED)]:
        answer = with_short_cuts(ours, short_cuts[name], FULL_DEPTH, recording)
        cases.append(Case(f"full depth, {name}", 0.0, partial(run_batches, answer, parts)))
    for goal in saved:
        policy, left = workload.policy(goal)
        share = 1 - left.double().mean().item() / layers
        fixed = max(1, round(layers * (1 - share)))
        cut = answers_of(shallower(stock, fixed))
        cases.append(Case(f"first {fixed} layers", 1 - fixed / layers, partial(run_batches, cut, parts)))
        for name, execution in short_cuts.items():
            answer = with_short_cuts(ours, execution, policy, recording)
            cases.append(Case(name, share, partial(run_batches, answer, parts)))
        if workload.size > 1:
            cases.append(Case("predict", share, partial(run_predict, ours, workload, policy)))
    return cases


def run_predict(model: PFBerxitForSequenceClassification, workload: Workload, policy: ExitPolicy) -> PFBerxitOutput:
    """All rows of a workload through `predict`, which makes the batches itself."""
    rows = [{"input_ids": row} for row in workload.rows]
    model = scripted(model, SHORT_CUTS[OURS], workload.recording)
    return model.predict(rows, policy, workload.size, progress=False)


# ---- results --------------------------------------------------------------------------------------------------------


def as_markdown(lines: Sequence[Line], over_full: bool = False) -> str:
    """One row per case; `over_full`: efficiency only of those that are held against a case at full depth."""
    titles = ["batch", "rows", "case", "layers saved", "stock ms/row", "ms/row", "speed-up", "efficiency"]
    rows = [
        [
            str(each.batch),
            each.workload,
            each.case,
            f"{100 * each.saved:.0f} %",
            f"{each.stock_ms:.2f}",
            f"{each.ms:.2f}",
            f"{each.speed_up:.2f}",
            "" if over_full and each.over_full is None else f"{each.efficiency:.3f}",
        ]
        for each in lines
    ]
    return table(titles, rows, align="rll")


def as_json(lines: Sequence[Line]) -> str:
    """All numbers."""
    return json.dumps([{**asdict(line), "efficiency": line.efficiency} for line in lines], indent=1) + "\n"


def save(lines: list[Line], folder: str | Path, title: str) -> None:
    """Write `benchmark.json`, `benchmark.md` and `benchmark.png` to a folder."""
    from ..evaluation import plots  # exported files are timed where matplotlib is not installed

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.json").write_text(as_json(lines), encoding="utf-8")
    (folder / "benchmark.md").write_text(as_markdown(lines) + "\n", encoding="utf-8")
    plots.efficiencies(lines, folder / "benchmark.png", title)
