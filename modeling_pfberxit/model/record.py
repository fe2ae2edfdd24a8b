"""`CallRecord`: what one call has found. Nothing of it is kept on the model, so one model serves many threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .encoder_layer import same
from .evidence import Evidence
from .rows import Rows


@dataclass
class CallRecord:
    """What has been recorded so far of the rows of one call."""

    hidden_states: list[Tensor] | None = None  # None: not asked for
    attentions: list[Tensor] | None = None  # None: not asked for
    evidence: list[Evidence] = field(default_factory=list)  # of every exit, where all rows pass all of them
    answers: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)  # rows' numbers, logits, layers executed

    @classmethod
    def of(cls, hidden_states: bool, attentions: bool) -> CallRecord:
        """An empty record of a call that asks for these or not."""
        return cls([] if hidden_states else None, [] if attentions else None)

    @property
    def wants_layers(self) -> bool:
        """Whether every layer's output is asked for: then all rows are computed to the last layer."""
        return self.hidden_states is not None or self.attentions is not None

    def add_states(self, rows: Rows, weights: Tensor | None = None, norm: Callable[[Tensor], Tensor] = same) -> None:
        """Keep the tokens' states (B, n, d) behind a norm, and the attention weights, where they are asked for."""
        if self.hidden_states is not None:
            self.hidden_states.append(norm(rows.tokens()))
        if self.attentions is not None and weights is not None:
            self.attentions.append(weights)

    def answer(self, index: Tensor, logits: Tensor, layers: Tensor) -> None:
        """Keep the predictions of rows: their numbers (B,), logits (B, C) and layers executed (B,)."""
        self.answers.append((index, logits, layers))

    def answer_where(self, exits: Tensor, index: Tensor, logits: Tensor, layers: Tensor) -> None:
        """Keep those of the rows that exit, (B,) of True and False."""
        which = exits.nonzero().squeeze(1)
        if which.numel():
            self.answer(index[which], logits[which], layers[which])

    def collect(self) -> tuple[Tensor, Tensor]:
        """All logits (B, C) and layers executed (B,), in the order of the rows' numbers."""
        index, logits, layers = (torch.cat(part) for part in zip(*self.answers))
        order = index.argsort()
        return logits[order], layers[order]

    def every_exit(self) -> dict[str, Tensor | None]:
        """`exit_logits` ... (B, exits, ...) as outputs have them; nothing where not every exit ran for every row."""
        parts = Evidence.stack(self.evidence)._asdict() if self.evidence else {}
        return {f"exit_{name}": part for name, part in parts.items()}

    def shown(self) -> dict[str, tuple[Tensor, ...] | None]:
        """`hidden_states` and `attentions` as outputs of `transformers` have them."""
        parts = {"hidden_states": self.hidden_states, "attentions": self.attentions}
        return {name: None if part is None else tuple(part) for name, part in parts.items()}
