"""What one forward pass collects on its way: the answers given, and what a caller asked to see."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .criteria import step
from .evidence import Evidence
from .exit_policy import ExitPolicy
from .rows import Rows


@dataclass
class Walk:
    """The record of one call. Nothing of it is kept on the model, so one model serves many threads."""

    hidden_states: list[Tensor] | None  # None: not asked for
    attentions: list[Tensor] | None
    evidence: list[Evidence] = field(default_factory=list)  # of every exit, while every row passes it
    logits: Tensor | None = None  # (B, C)
    exit_layer: Tensor | None = None  # (B,) 0: still on its way

    @property
    def compacts(self) -> bool:
        """Whether rows that are done stop being computed: not while someone wants to see every layer of every row."""
        return self.hidden_states is None and self.attentions is None

    def see(self, rows: Rows, weights: Tensor | None = None) -> None:
        """Keep the tokens' states, (B, n, d), and the attention weights for a caller who asked for them."""
        if self.hidden_states is not None:
            self.hidden_states.append(rows.tokens())
        if self.attentions is not None and weights is not None:
            self.attentions.append(weights)

    def judge(self, rows: Rows, evidence: Evidence, policy: ExitPolicy | None, depth: int, last: bool) -> Tensor | None:
        """Take the answers of the rows that stop at this exit; without a policy, all of them at the last.

        Returns:
            The numbers of the rows that go on, or None if all of them do.
        """
        if policy is None:
            self.evidence.append(evidence)
            if last:
                self.logits, self.exit_layer = evidence.logits, torch.full_like(rows.index, depth)
            return None
        fire, answer = step(evidence, rows.state, policy, torch.full_like(rows.index, depth))
        if self.logits is None:
            self.logits, self.exit_layer = torch.zeros_like(answer), torch.zeros_like(rows.index)
        stops = (fire | last) & (self.exit_layer[rows.index] == 0)
        done = stops.nonzero().squeeze(1)
        if done.numel() == 0:
            return None
        self.logits = self.logits.index_copy(0, rows.index[done], answer[done])
        self.exit_layer[rows.index[done]] = depth
        return (~stops).nonzero().squeeze(1) if self.compacts else None

    @property
    def recorded(self) -> Evidence | None:
        """Of all exits, which are the second dimension; None where not every exit ran for every row."""
        return Evidence.stack(self.evidence) if self.evidence else None
