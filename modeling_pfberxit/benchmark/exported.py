"""Speed of an exported file beside the stock model and ONNX Runtime at full depth, in turn within one run.

Rows leave where a recording's rows leave: under a tau that everything is below, a row's patience decides the exit.
Weights are random, which decides nothing about speed. Each model is run once untimed before it is timed: between the
others it would find its weights in memory, and alone, as it is used, it finds them in the processor's caches.

* efficiency: time of ONNX Runtime at full depth, adapters included, over the file's, over the speed-up by layers. At
  1.0 every layer saved shows on the clock.
* never exits: the same file under a tau of 0, over the file without exits.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from ..evaluation.tables import table
from ..export.made import one_file
from ..export.quantised import quantised
from ..export.segments import segments_of
from ..export.storage import save
from ..model.criteria import rule_of
from ..model.exit_policy import ExitPolicy, static
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .baselines import OURS, SHORT_CUTS, Answer, in_onnx_runtime, with_short_cuts
from .speed import Case, Line, as_json, as_markdown, models_and_workloads, run_batches, timed
from .workload import Batch, Workload

EVERYTHING = 1e9  # a tau that all divergences are below
PLAIN, FULL, FULL_INT8 = "ONNX Runtime", "ONNX Runtime, adapters", "ONNX Runtime, adapters, 8 bits"
FILE, FILE_INT8, SINGLE, NEVER = "file", "file, 8 bits", "file, --single", "file that never exits"
OVER = {FILE: FULL, SINGLE: FULL, FILE_INT8: FULL_INT8, NEVER: FULL}  # at full depth, in the same arithmetic


@dataclass(frozen=True)
class Opened:
    """A file on disk, opened.

    Args:
        megabytes: of the file; memory: what the process grew by when it was opened and run once.
    """

    session: Any
    megabytes: float
    load_seconds: float
    memory: float


def run_exported(
    saved: list[float], repeats: int, output: str | None, say: Callable[[str], None], **setting: Any
) -> list[Line]:
    """`pfberxit benchmark --exported`; `setting` as `models_and_workloads` takes it."""
    stock, ours, workloads = models_and_workloads(**setting)
    if setting["device"] != "cpu" or setting["dtype"] != "float32":
        refuse("exported", True, "left out but for --device cpu --dtype float32")
    with tempfile.TemporaryDirectory() as folder:
        files, seconds = opened_files(ours, Path(folder))
    plain = in_onnx_runtime(stock)
    title = f"{setting['preset']}, {setting['pooling']} exits, {torch.get_num_threads()} threads"
    costs = f"{title}\n\nTranslated in {seconds:.0f} s.\n\n{costs_table(files)}\n"
    say(costs)
    lines: list[Line] = []
    for number, workload in enumerate(workloads, start=1):
        say(f"[{number}/{len(workloads)}] batch {workload.size}, {workload.name} ...")
        lines += timed(stock, workload, cases_of(ours, workload, saved, files, plain), repeats, settled=True)
    say("\n" + as_markdown(lines, over_full=True))
    if output:
        folder_of = Path(output)
        folder_of.mkdir(parents=True, exist_ok=True)
        (folder_of / "exported.md").write_text(f"{costs}\n{as_markdown(lines, over_full=True)}\n", encoding="utf-8")
        (folder_of / "exported.json").write_text(as_json(lines), encoding="utf-8")
    return lines


# ---- the files -------------------------------------------------------------------------------------------------------


def opened_files(model: PFBerxitForSequenceClassification, folder: Path) -> tuple[dict[str, Opened], float]:
    """The file that exits, in its variants, and the one that does not, each opened; seconds the translation took."""
    start = time.perf_counter()
    segments = segments_of(model)
    rule, last = ExitPolicy(threshold=EVERYTHING, patience=1), static(model.exit_depths[-1])
    full, file = one_file(segments, last), one_file(segments, rule)
    seconds = time.perf_counter() - start
    protos = {FULL: full, FULL_INT8: quantised(full), FILE: file, FILE_INT8: quantised(file),
              SINGLE: one_file(segments, rule, single=True)}  # fmt: skip
    paths = {name: folder / f"{number}.onnx" for number, name in enumerate(protos)}
    return {name: opened(proto, paths[name], name not in OVER.values()) for name, proto in protos.items()}, seconds


def opened(proto: onnx.ModelProto, path: Path, exits: bool) -> Opened:
    """Write a file, open it with as many threads as torch, and run a row of 64 tokens.

    Args:
        exits: open it as `pfberxit.onnx` does; else as ONNX Runtime does by itself.
    """
    import onnxruntime

    save(proto, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern, options.log_severity_level = not exits, 3
    before, start = resident(), time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    ids = torch.full((1, 64), 7)
    run_file(session, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, np.zeros(1), np.ones(1))
    return Opened(session, sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*")) / 2**20, seconds,
                  resident() - before)  # fmt: skip


def resident() -> float:
    """Megabytes of memory the process has; NaN where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 2**20


def costs_table(files: dict[str, Opened]) -> str:
    """Size, time to open and memory of each file."""
    rows = [[name, f"{each.megabytes:.1f}", f"{each.load_seconds:.2f}", f"{each.memory:.0f}"]
            for name, each in files.items()]  # fmt: skip
    return table(["file", "MB", "opened in s", "memory MB"], rows)


def run_file(session: Any, tokens: dict[str, Tensor], tau: np.ndarray, patience: np.ndarray) -> list[np.ndarray]:
    """Logits and layers of a batch."""
    every = {name: value.numpy() for name, value in tokens.items()}
    every |= {"token_type_ids": np.zeros_like(every["input_ids"])}
    every |= {"tau": tau.astype(np.float32), "patience": patience.astype(np.int64)}
    return session.run(None, {each.name: every[each.name] for each in session.get_inputs()})


# ---- the cases -------------------------------------------------------------------------------------------------------


def cases_of(
    ours: PFBerxitForSequenceClassification, workload: Workload, saved: Sequence[float], files: dict[str, Opened],
    plain: dict[str, Answer],
) -> list[Case]:  # fmt: skip
    """What is timed on one workload."""
    parts, exits = workload.batches("cpu"), list(ours.exit_depths)
    layers = torch.full((len(workload.rows),), exits[-1])

    def case(name: str, share: float, answer: Answer, kind: str = "") -> Case:
        return Case(name, share, partial(run_batches, answer, parts), OVER.get(kind))

    cases = [case(name, 0.0, answer) for name, answer in plain.items()]
    cases += [case(name, 0.0, by_file(files[name], layers, exits)) for name in (FULL, FULL_INT8)]
    cases.append(case(NEVER, 0.0, by_file(files[FILE], layers, exits), NEVER))
    for goal in saved:
        policy, left = workload.policy(goal)
        share = 1 - left.double().mean().item() / exits[-1]
        ending = f" @ {100 * share:.0f} %"
        answer = with_short_cuts(ours, SHORT_CUTS[OURS], policy, workload.recording)
        cases.append(case(f"ours, PyTorch{ending}", share, answer))
        for name in (FILE, FILE_INT8, *([SINGLE] if workload.size == 1 else [])):
            cases.append(case(f"{name}{ending}", share, by_file(files[name], left, exits), name))
    return cases


def by_file(file: Opened, layers: Tensor, exits: list[int]) -> Answer:
    """A file in which every row leaves after a given layer, (N,) by the workload's numbers; the last: it never does."""
    first = rule_of(ExitPolicy()).earliest(ExitPolicy(patience=1))
    numbers = torch.tensor([exits.index(layer) + 1 for layer in layers.tolist()])
    patience = (numbers - first + 1).clamp(min=1)
    tau = torch.where(numbers < len(exits), EVERYTHING, 0.0)

    def answer(batch: Batch) -> Tensor:
        """A batch -> (B, C)."""
        rows = batch.numbers
        logits, left = run_file(file.session, batch.tokens, tau[rows].numpy(), patience[rows].numpy())
        assert left.tolist() == layers[rows].tolist(), "rows left after other layers than they should"
        return torch.from_numpy(logits)

    return answer
