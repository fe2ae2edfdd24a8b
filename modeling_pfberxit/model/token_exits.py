"""Tokens that leave on their own: HashEE's table of the last layer at which each token of the vocabulary queries.

A token that has left keeps its state, which the others still read. How rows sort such positions is in `rows`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init

from .adapters import Adapter
from .validation import refuse

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
