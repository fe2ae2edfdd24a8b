"""What every exit says, as a graph of its own: by it thresholds of a file in 8 bits are chosen and certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..evaluation.bounds import rows_needed, share
from ..evaluation.certificates import Certificate, planned, tested
from ..evaluation.certifying import CHOOSE_SHARE
from ..evaluation.claims import ONE_LABEL, Counter
from ..evaluation.fixed_sequence import AtMost
from ..evaluation.recording import Recording, record
from ..model.evidence import Evidence
from ..model.exit_policy import ExitPolicy
from ..model.validation import refuse
from .compose import File, Values
from .graphs import Graph
from .parts import per_row
from .quantised import quantised
from .storage import opened
from .verification import SIZES, Row, batches

NAME = "certified-int8"  # of the operating point


class EvidenceFile(File):
    """All layers and all exits for all rows; outputs (B, E, ...) under the names that exits have for them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.built_in = True  # no row brings anything but tokens: none leaves

    def run_all(self, graph: Graph, values: Values) -> Values:
        """The outputs, by their names."""
        found: list[Values] = []
        for depth, layer in enumerate(self.segments.layers, start=1):
            self.run_layer(graph, values, layer)
            if depth in self.exit_depths:
                found.append(self.said(graph, values, self.exit_depths.index(depth)))
        return {name: graph.op("Concat", *(each[name] for each in found), axis=1) for name in found[0]}

    def shape(self, output: str) -> None:
        """Every output has one of its own."""

    def said(self, graph: Graph, values: Values, number: int) -> Values:
        """What one exit emits, (B, 1, ...)."""
        segment = self.segments.exits[number]
        found = graph.copy_of(segment.template, values, segment.weights, segment.template.outputs)
        return {name: graph.op("Unsqueeze", value, graph.whole(1))
                for name, value in zip(segment.template.outputs, found)}  # fmt: skip


def recorded(file: EvidenceFile, rows: Sequence[Row], full: Recording) -> Recording:
    """What the exits of a model in 8 bits say of rows that were recorded in float32."""
    session, parts = opened(quantised(file.build())), []
    names = [each.name for each in session.get_outputs()]
    for batch in batches(rows, max(SIZES), file.segments.model):
        parts.append(session.run(None, {name: value.numpy() for name, value in batch.items()}))
    emitted = {name: torch.as_tensor(np.concatenate(part)) for name, part in zip(names, zip(*parts))}
    return replace(full, evidence=Evidence(**emitted))


def in_two(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The numbers of the rows that choose a setting, and of those that certify it."""
    chosen = round(CHOOSE_SHARE * rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return order[:chosen], order[chosen:]


def recertified(
    file: EvidenceFile, rows: Sequence[Row], policy: ExitPolicy, epsilon: float, confidence: float, seed: int = 0
) -> Certificate:
    """A setting of a policy's rule in 8 bits whose answers seldom differ from those of full depth in float32.

    Args:
        rows: that neither trained the model nor chose or certified anything before; some choose, the others certify.

    Raises:
        ValueError: fewer rows than it takes; a rule whose threshold is no single number.
    """
    if not per_row(policy):
        refuse("differ", epsilon, "left out where a rule has a threshold for each exit or label")
    delta = round(1 - share("confidence", confidence), 12)
    least, order = rows_needed(share("differ", epsilon), 1 - delta), in_two(len(rows), seed)
    if len(order[1]) < least:
        refuse("texts", f"{len(rows)} rows", f"at least {int(least / (1 - CHOOSE_SHARE)) + 1} to certify {epsilon:g}")
    full = record(file.segments.model, batches(rows, max(SIZES), file.segments.model))
    small = recorded(file, rows, full)
    counters = [Counter(full.select(part), ONE_LABEL, None, False) for part in order]
    test = AtMost(counters[0].claim, epsilon, delta)
    settings = planned(small.select(order[0]), counters[0], len(order[1]), None, replace(policy, threshold=None))(test)
    found = tested(small.select(order[1]), settings, counters[1], test)
    return Certificate(name=NAME, claim=ONE_LABEL, epsilon=epsilon, confidence=confidence, delta=delta,
                       chosen_on=len(order[0]), **found)  # fmt: skip
