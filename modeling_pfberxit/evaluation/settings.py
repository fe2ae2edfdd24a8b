"""Exit settings measured online: score, depth and time; where rows exit; whether easy rows exit before hard ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import bootstrap
from torch import Tensor

from ..data.metrics import score
from ..data.tasks import Task
from ..model.exit_policy import FULL_DEPTH, ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .recording import padded_batches
from .tables import table
from .timing import interleaved


@dataclass(frozen=True)
class Setting:
    """One exit setting, measured.

    Args:
        depths: (N,) layers executed for each row.
        milliseconds: per row, by batch size.
        unsure: the share of the rows that left without an answer; the score is of the others.
    """

    name: str
    policy: ExitPolicy
    score: float
    depths: np.ndarray
    layers: int
    milliseconds: dict[int, float]
    unsure: float = 0.0

    @property
    def saved(self) -> float:
        """Share of the layers that were not executed."""
        return 1 - float(self.depths.mean()) / self.layers


def batches(rows: Dataset, model: PFBerxitForSequenceClassification, size: int) -> list[dict[str, Tensor]]:
    """The rows in their order, padded to the longest of each batch, without labels, where the model is."""
    found = padded_batches(rows.remove_columns("labels"), torch.arange(len(rows)), size, model.config.pad_token_id or 0)
    return [{name: values.to(model.device) for name, values in batch.items()} for batch in found]


@torch.inference_mode()
def predict(
    model: PFBerxitForSequenceClassification, rows: list[dict[str, Tensor]], policy: ExitPolicy
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and executed layers (N,) of batches run under a policy."""
    outputs = [model(**batch, exit_policy=policy, return_dict=True) for batch in rows]
    logits = torch.cat([output.logits for output in outputs]).float().cpu().numpy()
    return logits, torch.cat([output.exit_layer for output in outputs]).cpu().numpy()


def measure(
    model: PFBerxitForSequenceClassification,
    task: Task,
    rows: Dataset,
    policies: dict[str, ExitPolicy],
    batch_sizes: Sequence[int] = (1, 32),
    timed_rows: int = 96,
    repeats: int = 5,
) -> list[Setting]:
    """Score, depth and time of each policy, full depth first; times are taken in turn on the first `timed_rows`."""
    model.eval()
    policies = {"full depth": FULL_DEPTH, **policies}
    whole = batches(rows, model, 32)
    timed = rows.select(range(min(timed_rows, len(rows))))
    milliseconds: dict[str, dict[int, float]] = {name: {} for name in policies}
    for size in batch_sizes:
        parts = batches(timed, model, size)
        calls = [partial(predict, model, parts, policy) for policy in policies.values()]
        for name, times in zip(policies, interleaved(calls, repeats, warmups=1)):
            milliseconds[name][size] = 1000 * median(times) / len(timed)
    settings = []
    for name, policy in policies.items():
        logits, depths = predict(model, whole, policy)
        given = ~np.isnan(logits).any(1)
        value = score(task.metric, logits[given], np.asarray(rows["labels"])[given]) if given.any() else 0.0
        unsure = 1 - float(given.mean())
        settings.append(Setting(name, policy, value, depths, len(model.depths), milliseconds[name], unsure))
    return settings


def as_table(settings: list[Setting], metric: str) -> str:
    """A Markdown table with a line per setting."""
    sizes = list(settings[0].milliseconds)
    some_unsure = any(each.unsure for each in settings)
    titles = [
        "setting",
        metric,
        "mean depth",
        "layers saved",
        *(["unsure"] if some_unsure else []),
        *(f"ms/row, batch {size}" for size in sizes),
    ]
    rows = [
        [
            each.name,
            f"{each.score:.3f}",
            f"{each.depths.mean():.2f} of {each.layers}",
            f"{100 * each.saved:.0f} %",
            *([f"{100 * each.unsure:.1f} %"] if some_unsure else []),
            *(f"{each.milliseconds[size]:.2f}" for size in sizes),
        ]
        for each in settings
    ]
    return table(titles, rows)


def histogram(groups: dict[str, np.ndarray], layers: int, width: int = 40) -> str:
    """Bars of the share of rows that exited at each layer, one block per group."""
    lines = []
    for name, depths in groups.items():
        lines.append(f"{name} ({len(depths)} rows, mean depth {depths.mean():.2f})")
        for layer in range(1, layers + 1):
            share = float((depths == layer).mean())
            if share:
                lines.append(f"  layer {layer:2d} {'█' * max(1, round(width * share))} {100 * share:.0f} %")
    return "\n".join(lines)


def earlier(easy: np.ndarray, hard: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """By how many layers the easy rows exit earlier: the mean difference and its 95 % bootstrap interval over rows."""

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return b.mean(axis) - a.mean(axis)

    at_once = max(1, 20_000_000 // max(len(easy), len(hard)))  # resamples whose rows fit in memory together
    found = bootstrap(
        (easy, hard), difference, method="percentile", n_resamples=9999, batch=at_once, rng=np.random.default_rng(seed)
    )
    low, high = found.confidence_interval
    return float(difference(easy, hard)), float(low), float(high)
