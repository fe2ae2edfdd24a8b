"""What the contestants of the benchmark are given: rows of tokens in batches, and what their exits say.

Weights are random: they decide nothing about speed. What exits say is taken from the recording of a real model, row by
row, so that rows leave where that model's rows leave. Without a recording they settle at layers drawn evenly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..evaluation.frontier import settings_for
from ..evaluation.recording import Recording
from ..model.exit_policy import ExitPolicy
from ..model.exits import SINGLE_LABEL, Evidence
from ..model.loop import Loop
from ..model.rows import Rows
from ..model.streams import sorted_batches
from ..model.validation import refuse


@dataclass(frozen=True)
class Batch:
    """Rows of a batch, padded on the right, and their numbers."""

    numbers: Tensor
    tokens: dict[str, Tensor]


@dataclass(frozen=True)
class Workload:
    """Rows of tokens, (n,) each, how many of them go into a batch, and what every exit says of them."""

    name: str
    size: int
    rows: list[Tensor]
    recording: Recording

    def batches(self, device: str) -> list[Batch]:
        """Sorted by length."""
        rows, parts = ({"input_ids": row} for row in self.rows), []
        for batch, numbers in sorted_batches(rows, self.size, lambda length: self.size):
            ids = [row["input_ids"] for row in batch]
            padded = (
                pad_sequence(each, batch_first=True).to(device) for each in (ids, [torch.ones_like(row) for row in ids])
            )
            parts.append(Batch(numbers, dict(zip(("input_ids", "attention_mask"), padded, strict=True))))
        return parts

    def policy(self, saved: float, patience: int = 1) -> tuple[ExitPolicy, Tensor]:
        """Divergence and patience at the threshold that saves such a share of layers, and where rows leave, (N,)."""
        (policy,) = settings_for(self.recording, ExitPolicy(patience=patience), [saved])
        return policy, self.recording.replay(policy)[1]


def of_one_length(recording: Recording, batch: int, length: int, vocabulary: int) -> Workload:
    """Rows of random tokens: sixteen at batch size 1, one call each, or else 32, for a stream to have some to merge."""
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


# ---- what exits say -------------------------------------------------------------------------------------------------


def settled(layers: int, rows: int = 512, seed: int = 0) -> Recording:
    """A recording of no model: rows whose exits disagree until one layer, drawn evenly, and then agree."""
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


class Script:
    """Lets exits say what was recorded of the rows, after they have said their own, which costs as much as ever."""

    def __init__(self, recording: Recording):
        self.logits, self.depths = recording.evidence.logits, recording.exit_depths
        self.numbers: Tensor | None = None  # of the batch's rows; None: they are numbered through

    def ask(self, loop: Loop, rows: Rows, states: Tensor, original) -> Evidence:
        """In place of `Loop.run_exits`."""
        said = original(loop, rows, states)
        if len(rows.groups) == 1:
            numbers, exit = rows.index.cpu(), self.depths.index(rows.depth)
            numbers = numbers if self.numbers is None else self.numbers[numbers]
            return said._replace(logits=self.logits[numbers, exit].to(said.logits))
        depths = rows.depths()
        able = torch.isin(depths, torch.tensor(self.depths, device=depths.device))
        numbers = rows.index[able].cpu() if self.numbers is None else self.numbers[rows.index[able].cpu()]
        exits = torch.bucketize(depths[able].cpu(), torch.tensor(self.depths))
        return said._replace(logits=self.logits[numbers, exits].to(said.logits))

    @contextmanager
    def spoken(self, numbers: Tensor | None = None) -> Iterator[None]:
        """While rows with these numbers are run."""
        self.numbers, original = numbers, Loop.run_exits
        with patch.object(Loop, "run_exits", lambda loop, rows, states: self.ask(loop, rows, states, original)):
            yield
