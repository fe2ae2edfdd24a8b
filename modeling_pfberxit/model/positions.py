"""Positions that come and go: late prompts that join a row half-way up, and tokens that leave on their own.

Prompts (Late Prompt Tuning, Findings of EMNLP 2022) are learned, or made of a row's first token or of slots of its
tokens. Tokens leave (HashEE, Findings of ACL 2022) after the layer that a table over the vocabulary says; others still
read the state they left with. When prompts join is in `loop`, how rows hold both in `rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .adapters import Adapter
from .validation import refuse

# ---- late prompts ----------------------------------------------------------------------------------------------------


class Prompts(nn.Module):
    """Makes p prompts for every row: (B, n, d) and 1 for tokens, 0 for padding (B, n) -> (B, p, d)."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, layers: int) -> None:
        super().__init__()
        if config.prompt_layer >= layers:
            allowed = f"a layer below the last, 0 to {layers - 1}: prompts join above it"
            refuse("prompt_layer", config.prompt_layer, allowed)
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


# ---- tokens that leave on their own ----------------------------------------------------------------------------------

DRAWN = 0  # in the table: every occurrence draws its own layer
WORD = 0xFFFFFFFF  # 32 bits; products of two such numbers would leave int64, so `scramble` multiplies by less


class TokenExits(nn.Module):
    """HashEE's table: the last layer at which each token of the vocabulary queries; in a new one, the last layer."""

    def __init__(self, config: PreTrainedConfig, vocabulary: int, layers: int) -> None:
        super().__init__()
        self.layers, self.seed = layers, config.token_exit_seed
        drawn: tuple[int, int] = config.token_exit_range or (1, layers)
        self.low, self.high = drawn
        self.register_buffer("depths", torch.full((vocabulary,), layers, dtype=torch.int16))

    def forward(self, input_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The layer each token leaves after: ids (B, n) -> (B, n), 0 at padding. A row's first token never leaves."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        drawn = self.low + scramble(input_ids, positions, self.seed) % (self.high - self.low + 1)
        depths = self.depths[input_ids].long()
        depths = torch.where(depths == DRAWN, drawn, depths).clamp(max=self.layers)
        depths[:, 0] = self.layers
        return depths if padding_mask is None else depths * (padding_mask != 0)


def resize(table: TokenExits, vocabulary: int) -> None:
    """Fit the table to a vocabulary of another size; new tokens query at all layers."""
    kept = table.depths[:vocabulary]
    table.depths = torch.cat([kept, kept.new_full((vocabulary - len(kept),), table.layers)])


def check_reach(depths: nn.Module, exits: nn.Module | None) -> None:
    """Refuse adapters that read a token's neighbours: positions are sorted anew, and some are no longer computed."""
    inside, beside = (
        [module.reach for module in part.modules() if isinstance(module, Adapter)]
        for part in (depths, nn.Module() if exits is None else exits)
    )
    if any(reach != 0 for reach in inside) or any(reach not in (0, None) for reach in beside):
        refuse("token_exits", True, "False with this adapter_sublearner; identity and mlp look at one token alone")


def scramble(token: Tensor, position: Tensor, seed: int) -> Tensor:
    """A whole number >= 0 that looks random and depends on token, position and seed alone: never on the batch."""
    mixed = (token * 0x9E3779B1 + position * 0x85EBCA77 + seed * 0xC2B2AE3D) & WORD
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & WORD
    return mixed ^ (mixed >> 15)


@torch.no_grad()
def init_token_exits(module: nn.Module) -> None:
    """A table that no checkpoint fills: all tokens query at all layers."""
    if isinstance(module, TokenExits):
        init.constant_(module.depths, module.layers)
