"""Milliseconds per layer on this machine: for each batch size and length, a line fitted to measured calls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from ..model.backbones import longest_input
from ..model.exit_policy import ExitPolicy, static
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification, PFBerxitOutput
from ..model.validation import each, refuse, whole
from .timing import interleaved


@dataclass(frozen=True)
class Clock:
    """Milliseconds a request, as a fixed part and a part for every layer executed.

    Args:
        lines: (batch size, length) -> (fixed, per layer), of one row.
    """

    lines: dict[tuple[int, int], tuple[float, float]]

    def at(self, batch_size: int, length: int) -> Callable[[float], float]:
        """Mean layers -> milliseconds a row, for a batch size and a length that were measured."""
        if (batch_size, length) not in self.lines:
            refuse("batch_size, length", (batch_size, length), f"one that was measured: {sorted(self.lines)}")
        fixed, per_layer = self.lines[batch_size, length]
        return lambda layers: fixed + per_layer * layers


def _run(model: PFBerxitForSequenceClassification, ids: Tensor, policy: ExitPolicy) -> PFBerxitOutput:
    """One call on tokens (B, n)."""
    return model(input_ids=ids, exit_policy=policy)


@torch.inference_mode()
def measure_clock(
    model: PFBerxitForSequenceClassification,
    batch_sizes: Sequence[int] = (1, 32),
    lengths: Sequence[int] = (32, 128),
    repeats: int = 9,
    timer: Callable[[], float] = time.perf_counter,
) -> Clock:
    """Time calls that stop at the first, a middle and the last exit, in turn, and fit a line to their medians.

    Args:
        timer: `time.process_time` counts the work of one thread alone, whatever else the machine does.

    Raises:
        ValueError: a size or a length that cannot be, or a model with one exit. Nothing is timed then.
    """
    model.eval()
    longest = longest_input(model.config.encoder_config())
    batch_sizes, lengths = each(whole(1))("batch_sizes", batch_sizes), each(whole(1, longest))("lengths", lengths)
    depths = model.exit_depths
    stops = sorted({depths[0], depths[len(depths) // 2], depths[-1]})
    if len(stops) < 2:
        refuse("model", f"one exit, at layer {depths[-1]}", "one with several exits, or there is nothing to choose")
    policies = [static(depth) for depth in stops]
    lines = {}
    for batch_size in batch_sizes:
        for length in lengths:
            ids = torch.randint(5, model.config.vocab_size, (batch_size, length), device=model.device)
            calls = [partial(_run, model, ids, policy) for policy in policies]
            times = [1000 * median(series) / batch_size for series in interleaved(calls, repeats, timer=timer)]
            per_layer, fixed = np.polyfit(stops, times, 1)
            lines[batch_size, length] = float(fixed), float(per_layer)
    return Clock(lines)
