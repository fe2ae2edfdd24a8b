"""What the benchmark runs on: rows of random tokens in batches, and the logits of every exit for them.

The logits come from the recording of a trained model, row by row, so that rows leave where that model's rows leave.
Without a recording the exits of a row settle on an answer at a layer drawn evenly. No model is run here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.frontier import settings_for
from ..evaluation.recording import Recording
from ..model.evidence import SINGLE_LABEL, Evidence
from ..model.exit_policy import ExitPolicy
from ..model.streams import pad_rows, sorted_batches
from ..model.validation import refuse


@dataclass(frozen=True)
class Batch:
    """Rows of a workload, padded on the right."""

    numbers: Tensor  # (B,) which of the workload's rows
    tokens: dict[str, Tensor]  # input_ids and attention_mask, (B, n)


@dataclass(frozen=True)
class Workload:
    """Rows of tokens, and the recording that has the logits of every exit for each of them."""

    name: str
    size: int  # rows in a batch
    rows: list[Tensor]  # (n,) token ids each
    recording: Recording

    def batches(self, device: str) -> list[Batch]:
        """All rows, sorted by length, on a device."""
        rows, batches = ({"input_ids": row} for row in self.rows), []
        for batch, numbers in sorted_batches(rows, self.size, lambda length: self.size):
            batches.append(Batch(numbers, pad_rows(batch, 0, device)))
        return batches

    def policy(self, saved: float, patience: int = 1) -> tuple[ExitPolicy, Tensor]:
        """The default rule at the threshold that saves such a share of layers, and the executed layers (N,)."""
        (policy,) = settings_for(self.recording, ExitPolicy(patience=patience), [saved])
        return policy, self.recording.replay(policy)[1]


def of_one_length(recording: Recording, batch: int, length: int, vocabulary: int) -> Workload:
    """Rows of random tokens of one length: 16 at batch size 1, else at least 32, so that `predict` can merge some."""
    chosen = sample(recording, 16 if batch == 1 else max(batch, 32))
    return Workload(f"{length} tokens", batch, random_tokens([length] * len(chosen), vocabulary), chosen)


def of_recorded_lengths(recording: Recording, batch: int, rows: int, vocabulary: int) -> Workload:
    """Rows of random tokens, as long as those that were recorded."""
    chosen = sample(recording, rows)
    return Workload("real lengths", batch, random_tokens(chosen.lengths.tolist(), vocabulary), chosen)


def random_tokens(lengths: Sequence[int], vocabulary: int) -> list[Tensor]:
    """Token ids, (n,) for every length."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(5, vocabulary, (length,), generator=generator) for length in lengths]


# ---- the exits' logits ----------------------------------------------------------------------------------------------


def settled(layers: int, rows: int = 512, seed: int = 0) -> Recording:
    """A recording made without a model: the exits of a row disagree up to a layer, drawn evenly, and then agree."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.randint(1, layers, (rows, 1, 1), generator=generator)
    logits = torch.randn(rows, layers, 2, generator=generator)
    logits = torch.where(torch.arange(layers)[:, None] < at, logits, torch.tensor([2.0, -2.0]) + logits / 100)
    lengths, depths = torch.full((rows,), 64), list(range(1, layers + 1))
    return Recording(Evidence(logits), lengths, logits[:, -1].argmax(-1), depths, SINGLE_LABEL, {})


def recorded(paths: Sequence[str], layers: int) -> Recording:
    """The rows of several recordings, their exits spread over so many layers.

    Raises:
        ValueError: they differ in the number of exits or answers, or are of another depth than fits.
    """
    found = [Recording.load(path) for path in paths]
    shapes = sorted({tuple(each.evidence.logits.shape[1:]) for each in found})
    depth, rest = divmod(layers, found[0].layers)
    if len(shapes) > 1 or rest or found[0].problem_type != SINGLE_LABEL:
        allowed = f"recordings of one kind, with a number of layers that divides {layers}, one class of several each"
        refuse("recording", f"{shapes}, {found[0].layers} layers", allowed)
    evidence, lengths = (
        torch.cat(parts) for parts in zip(*((each.evidence.logits, each.lengths) for each in found), strict=True)
    )
    depths = [depth * each for each in found[0].exit_depths]
    return Recording(Evidence(evidence), lengths, None, depths, SINGLE_LABEL, {})


def sample(recording: Recording, rows: int, seed: int = 0) -> Recording:
    """Some rows of a recording, drawn without replacement while there are any left."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(recording), generator=generator).repeat(-(-rows // len(recording)))[:rows]
    evidence = Evidence(recording.evidence.logits[order])
    return replace(recording, evidence=evidence, lengths=recording.lengths[order], labels=None)
