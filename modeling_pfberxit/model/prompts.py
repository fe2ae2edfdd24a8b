"""Late Prompt Tuning: a few trained positions that join the tokens half-way up.

Below the layer they join, nothing needs a gradient: the frozen encoder runs there as if nobody trained it. The prompts
come from a table, or are made for each row out of the states they join (NPG, MPPG, APPG).
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .validation import refuse


class Prompts(nn.Module):
    """Makes p prompts for every row: (B, n, d) and 1 for tokens, 0 for padding (B, n) -> (B, p, d)."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int):
        super().__init__()
        if config.prompt_layer >= layers:
            refuse(
                "prompt_layer", config.prompt_layer, f"a layer below the last, 0 to {layers - 1}: prompts join above it"
            )
        self.kind, self.length = config.prompt_generator, config.prompt_length
        if self.kind == "table":
            self.table = nn.Embedding(self.length, hidden_size)
            return
        self.down = nn.Linear(hidden_size, config.prompt_dim)
        self.up = nn.Linear(config.prompt_dim, hidden_size * (self.length if self.kind == "npg" else 1))

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The tokens' states (B, n, d) and 1 for tokens, 0 for padding (B, n) -> the prompts, (B, p, d)."""
        if self.kind == "table":
            return self.table.weight.expand(hidden_states.shape[0], -1, -1).to(hidden_states.dtype)
        if self.kind == "npg":  # from the row's first token
            return self.up(self.down(hidden_states[:, 0]).relu()).unflatten(-1, (self.length, -1))
        slots = slot_members(hidden_states, padding_mask, self.length)
        pooled = pool_slots(self.down(hidden_states), slots, largest=self.kind == "mppg")
        return self.up(pooled.relu())


def slot_members(hidden_states: Tensor, padding_mask: Tensor | None, slots: int) -> Tensor:
    """Which tokens fall into which of p slots, (B, p, n): slot j of a row of n tokens holds floor(j n / p) up to, but
    without, ceil((j + 1) n / p), as adaptive pooling has it. Slots overlap where n is no multiple of p."""
    longest = hidden_states.shape[1]
    tokens = torch.ones_like(hidden_states[..., 0]) if padding_mask is None else padding_mask
    lengths = (tokens != 0).sum(-1, keepdim=True)
    number = torch.arange(slots, device=hidden_states.device)
    first = number * lengths // slots  # (B, p)
    end = -(-(number + 1) * lengths // slots)
    token = torch.arange(longest, device=hidden_states.device)
    return (token >= first[..., None]) & (token < end[..., None])


def pool_slots(values: Tensor, slots: Tensor, largest: bool) -> Tensor:
    """The mean or the largest value of each slot: (B, n, m) and (B, p, n) -> (B, p, m)."""
    if largest:
        return values[:, None].masked_fill(~slots[..., None], -torch.inf).amax(2)
    weights = slots.to(values.dtype)
    return torch.bmm(weights / weights.sum(-1, keepdim=True), values)
