"""Late prompts: positions that join a row half-way up, made of nothing, of its first token or of slots of its tokens.

When they join is in `loop`; how rows take them in, in `rows`. (Late Prompt Tuning, Findings of EMNLP 2022.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .validation import refuse


class Prompts(nn.Module):
    """Makes p prompts for every row: (B, n, d) and 1 for tokens, 0 for padding (B, n) -> (B, p, d)."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__()
        if config.prompt_layer >= layers:
            refuse(
                "prompt_layer", config.prompt_layer, f"a layer below the last, 0 to {layers - 1}: prompts join above it"
            )
        self.length = config.prompt_length


class Table(Prompts):
    """The same prompts for every row."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__(config, hidden_size, layers)
        self.table = nn.Embedding(self.length, hidden_size)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, p, d), whatever the states."""
        return self.table.weight.expand(hidden_states.shape[0], -1, -1).to(hidden_states.dtype)


class FromFirst(Prompts):
    """NPG: all of them from the row's first token."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__(config, hidden_size, layers)
        self.down = nn.Linear(hidden_size, config.prompt_dim)
        self.up = nn.Linear(config.prompt_dim, hidden_size * self.length)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, n, d) -> (B, p, d)."""
        return self.up(self.down(hidden_states[:, 0]).relu()).view(-1, self.length, hidden_states.shape[-1])


class FromSlots(Prompts):
    """Each from a slot of the row's tokens, by the mean of their values (APPG)."""

    largest = False

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__(config, hidden_size, layers)
        self.down = nn.Linear(hidden_size, config.prompt_dim)
        self.up = nn.Linear(config.prompt_dim, hidden_size)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, n, d) and 1 for tokens, 0 for padding (B, n) -> (B, p, d)."""
        slots = slot_members(hidden_states, padding_mask, self.length)
        return self.up(pool_slots(self.down(hidden_states), slots, self.largest).relu())


class FromLargest(FromSlots):
    """MPPG: by the largest value of each slot."""

    largest = True


GENERATORS = {"none": None, "table": Table, "npg": FromFirst, "mppg": FromLargest, "appg": FromSlots}


def slot_members(hidden_states: Tensor, padding_mask: Tensor | None, slots: int) -> Tensor:
    """Which tokens fall into which of p slots, (B, p, n).

    Slot j of a row of n tokens holds floor(j n / p) up to, but without, ceil((j + 1) n / p), as adaptive pooling has
    it. Slots overlap where n is no multiple of p.
    """
    longest = hidden_states.shape[1]
    tokens = torch.ones_like(hidden_states[..., 0]) if padding_mask is None else padding_mask
    lengths = (tokens != 0).sum(-1, keepdim=True)
    number = torch.arange(slots, device=hidden_states.device)
    first = number * lengths // slots  # (B, p)
    end = ((number + 1) * lengths + slots - 1) // slots
    token = torch.arange(longest, device=hidden_states.device)
    return (token >= first[..., None]) & (token < end[..., None])


def pool_slots(values: Tensor, slots: Tensor, largest: bool) -> Tensor:
    """The mean or the largest value of each slot: (B, n, m) and (B, p, n) -> (B, p, m)."""
    if largest:
        return values[:, None].masked_fill(~slots[..., None], -torch.inf).amax(2)
    weights = slots.to(values.dtype)
    return torch.bmm(weights / weights.sum(-1, keepdim=True), values)
