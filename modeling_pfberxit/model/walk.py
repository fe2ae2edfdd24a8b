"""What one call collects on its way: the answers given, and what the caller asked to see."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .evidence import Evidence
from .rows import Rows


@dataclass
class Walk:
    """The record of one call. Nothing of it is kept on the model, so one model serves many threads."""

    hidden_states: list[Tensor] | None = None  # None: not asked for
    attentions: list[Tensor] | None = None
    evidence: list[Evidence] = field(default_factory=list)  # of every exit, while every row passes it
    answers: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # numbers, logits, layers of rows

    @property
    def watched(self) -> bool:
        """Whether someone wants to see every layer of every row: none stops being computed then."""
        return self.hidden_states is not None or self.attentions is not None

    def see(self, rows: Rows, weights: Tensor | None = None) -> None:
        """Keep the tokens' states, (B, n, d), and the attention weights for a caller who asked for them."""
        if self.hidden_states is not None:
            self.hidden_states.append(rows.tokens())
        if self.attentions is not None and weights is not None:
            self.attentions.append(weights)

    def answer(self, index: Tensor, logits: Tensor, layers: Tensor) -> None:
        """Rows have theirs: their numbers (B,), (B, C) and the layers executed (B,)."""
        self.answers.append((index, logits, layers))

    def answer_some(self, which: Tensor, index: Tensor, logits: Tensor, layers: Tensor) -> None:
        """Those of the rows, (B,) of True and False, have theirs."""
        which = which.nonzero().squeeze(1)
        if which.numel():
            self.answer(index[which], logits[which], layers[which])

    def collect(self) -> tuple[Tensor, Tensor]:
        """All answers (B, C) and executed layers (B,), in the order of the rows' numbers."""
        index, logits, layers = (torch.cat(part) for part in zip(*self.answers))
        order = index.argsort()
        return logits[order], layers[order]

    @property
    def recorded(self) -> Evidence | None:
        """Of all exits, which are the second dimension; None where not every exit ran for every row."""
        return Evidence.stack(self.evidence) if self.evidence else None
