"""How long a retrofitted classifier takes at its certified settings, beside the stock model and ONNX Runtime."""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from ..data.tasks import encode
from ..evaluation.onnx_stock import Answer, onnx_runtime
from ..evaluation.recording import padded_batches
from ..evaluation.tables import table
from ..evaluation.timing import interleaved, median_ratio
from ..model.exit_policy import FULL_DEPTH
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..training.finetuning import new_tokenizer
from .runs import Run

STOCK = "stock, PyTorch"
SIZES, ROWS, REPEATS = (1, 32), 256, 7
Batch = dict[str, Tensor]


def timed(run: Run, classifier: Path, retrofitted: Path, sizes: tuple[int, ...] = SIZES) -> str:
    """A table of milliseconds a row, and the speed-up over the stock model, on evaluation rows of similar length."""
    task = run.source.task
    rows = run.source.data[task.evaluation_split]
    rows = encode(task, rows.select(range(min(ROWS, len(rows)))), new_tokenizer(str(classifier)), run.budget.max_length)
    names = [name for name in rows.column_names if name != "labels"]
    order = torch.tensor([len(ids) for ids in rows["input_ids"]]).argsort(stable=True)
    ways, lines = ways_of(classifier, retrofitted, names), []
    for size in sizes:
        batches = list(padded_batches(rows.select_columns(names), order, size, 0))
        calls = [partial(all_of, way, batches) for way in ways.values()]
        times = interleaved(calls, REPEATS, warmups=1)
        for name, own in zip(ways, times):
            cells = [f"{1000 * median(own) / len(rows):.2f}", f"{median_ratio(times[0], own):.2f}"]
            lines.append([name, str(size), *cells])
    threads = f"{torch.get_num_threads()} thread(s), {len(rows)} rows, median of {REPEATS} passes in turn"
    return f"**{task.name}**, {threads}\n\n{table(['', 'batch', 'ms/row', 'speed-up'], lines)}"


def ways_of(classifier: Path, retrofitted: Path, names: list[str]) -> dict[str, Answer]:
    """What is timed, by its name, the stock model first."""
    stock = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    model = PFBerxitForSequenceClassification.from_pretrained(retrofitted).eval()
    policies: dict[str, Any] = {"full depth": FULL_DEPTH, **{name: name for name in model.config.operating_points}}
    own: dict[str, Answer] = {f"retrofitted, {name}": partial(answer, model, each) for name, each in policies.items()}
    return {STOCK: lambda batch: stock(**batch, return_dict=True).logits, **onnx_runtime(stock, names), **own}


def answer(model: PFBerxitForSequenceClassification, policy: Any, batch: Batch) -> Tensor:
    """The logits of a batch under a policy."""
    return model(**batch, exit_policy=policy, return_dict=True).logits


@torch.inference_mode()
def all_of(way: Answer, batches: list[Batch]) -> list[Tensor]:
    """All batches, one call each."""
    return [way(batch) for batch in batches]
