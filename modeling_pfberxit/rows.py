"""What belongs to a row, in tensors whose first dimension is the row: letting rows leave is one `index_select`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    attention_mask: Tensor | None = field(
        init=False, default=None
    )  # the padding mask as the encoder's attention wants it
    mean_weights: Tensor | None = field(init=False, default=None)  # (B, 1, n), for exits that read the mean

    def __post_init__(self) -> None:
        if self.padding_mask is not None:
            self.mean_weights = mean_weights(self.padding_mask, self.hidden_states.dtype)
            self.attention_mask = create_bidirectional_mask(
                config=self.encoder, inputs_embeds=self.hidden_states, attention_mask=self.padding_mask
            )

    @classmethod
    def start(cls, encoder: PreTrainedConfig, hidden_states: Tensor, attention_mask: Tensor | None) -> Rows:
        """All rows of a batch, before the first layer."""
        index = torch.arange(hidden_states.shape[0], device=hidden_states.device)
        # Looking at the mask's values would break a compiled graph in two.
        if attention_mask is not None and not torch.compiler.is_compiling():
            check_mask(attention_mask, hidden_states)
            attention_mask = None if bool((attention_mask != 0).all()) else attention_mask
        return cls(encoder, index, hidden_states, attention_mask)

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
