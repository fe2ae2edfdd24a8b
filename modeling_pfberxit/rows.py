"""What belongs to a row, in tensors whose first dimension is the row: letting rows leave is one `index_select`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from .criteria import ExitState
from .exits import mean_weights
from .validation import refuse


@dataclass
class Rows:
    """The rows still on their way through the encoder."""

    encoder: PreTrainedConfig
    index: Tensor  # (B,) the row's place in the batch it came in
    hidden_states: Tensor  # (B, n, d)
    padding_mask: Tensor | None  # (B, n) 1 for tokens, 0 for padding; None where nothing is padding
    state: ExitState | None = None

    @classmethod
    def start(cls, encoder: PreTrainedConfig, hidden_states: Tensor, attention_mask: Tensor | None) -> Rows:
        """All rows of a batch, before the first layer."""
        index = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        if attention_mask is not None:
            check_mask(attention_mask, hidden_states)
            if bool((attention_mask != 0).all()):
                attention_mask = None
        return cls(encoder, index, hidden_states, attention_mask)

    @cached_property
    def attention_mask(self) -> Tensor | None:
        """The padding mask as the encoder's attention wants it: (B, 1, n, n) or its like, None where none is needed."""
        if self.padding_mask is None:
            return None
        return create_bidirectional_mask(
            config=self.encoder, inputs_embeds=self.hidden_states, attention_mask=self.padding_mask
        )

    @cached_property
    def mean_weights(self) -> Tensor | None:
        """(B, 1, n), for exits that read the mean over the tokens."""
        return None if self.padding_mask is None else mean_weights(self.padding_mask, self.hidden_states.dtype)

    def select(self, keep: Tensor) -> Rows:
        """The rows whose numbers are given, (B',), cut to the longest of them."""
        mask, hidden_states = self.padding_mask, self.hidden_states.index_select(0, keep)
        if mask is not None:
            mask = mask.index_select(0, keep)
            longest = int(mask.any(0).nonzero().max()) + 1
            hidden_states, mask = hidden_states[:, :longest], mask[:, :longest]
            mask = None if bool((mask != 0).all()) else mask
        return replace(
            self,
            index=self.index.index_select(0, keep),
            hidden_states=hidden_states,
            padding_mask=mask,
            state=None if self.state is None else self.state.select(keep),
        )


def check_mask(attention_mask: Tensor, hidden_states: Tensor) -> None:
    """Refuse masks this library does not know: of another shape, or with padding on the left."""
    if attention_mask.shape != hidden_states.shape[:2]:
        allowed = f"of the tokens' shape {tuple(hidden_states.shape[:2])}"
        refuse("attention_mask", tuple(attention_mask.shape), allowed)
    if not bool((attention_mask[:, 0] != 0).all()):
        refuse("attention_mask", "0 at a row's first token", "1 there: pad on the right (padding_side='right')")
