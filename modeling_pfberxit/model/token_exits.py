"""HashEE: tokens that leave on their own, each at a layer that is fixed before the first one runs.

A token that has left asks nothing any more: it stays among the keys and values with the state it had. No exit has to be
trained or asked for it; a table over the vocabulary says how deep each token goes.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .adapters import Adapter
from .validation import refuse

DRAWN = 0  # in the table: every occurrence draws its own layer
WORD = 0xFFFFFFFF


class TokenExits(nn.Module):
    """The table: the last layer every token of the vocabulary queries at. A new one sends all tokens to the end."""

    def __init__(self, config: PreTrainedConfig, vocabulary: int, layers: int):
        super().__init__()
        self.layers, self.seed = layers, config.token_exit_seed
        self.low, self.high = config.token_exit_range or (1, layers)
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
    """Fit the table to a vocabulary of another size; new tokens go to the end."""
    kept = table.depths[:vocabulary]
    table.depths = torch.cat([kept, kept.new_full((vocabulary - len(kept),), table.layers)])


def check_reach(depths: nn.Module, exits: nn.Module | None) -> None:
    """Refuse adapters that look at a token's neighbours: they may have left, or stand elsewhere than in the text."""
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
def init_token_exits(module: nn.Module, init) -> None:
    """A table that no checkpoint fills sends all tokens to the end."""
    if isinstance(module, TokenExits):
        init.constant_(module.depths, module.layers)
