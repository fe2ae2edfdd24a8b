"""Multiply-adds (MACs) of layers, adapters and exits, counted as ELUE counts them.

A linear layer costs inputs x outputs per position, attention 2 for every pair of positions and head and 2 for each of
its dimensions, a LayerNorm 2 per element; activations, biases and embeddings are free. One layer of 768 dimensions over
128 tokens costs 931.9 million. Where scores hold products with a table of distances (DeBERTa), the distances that occur
count; the table's own projection is the same for all rows, and does not.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..model.adapters import PLACEMENTS, Adapter
from ..model.backbones import num_depths
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import MULTI_LABEL
from ..model.families import exit_heads, family_of
from ..model.heads import Head

Count = TypeVar("Count", int, Tensor)  # of one row, or of each of many


def layer_macs(encoder: PreTrainedConfig, keys: Count, queries: Count | None = None) -> Count:
    """One encoder layer over `keys` positions, of which `queries` are computed (default: all)."""
    q, n, d, heads = keys if queries is None else queries, keys, encoder.hidden_size, encoder.num_attention_heads
    shared = heads // (getattr(encoder, "num_key_value_heads", None) or heads)  # heads for one of keys and values
    wide = heads * (getattr(encoder, "head_dim", None) or d // heads)  # all heads together
    projections = 2 * q * d * wide + 2 * n * d * wide // shared  # queries and output; keys and values
    family = family_of(encoder)
    of_queries, of_keys = family.distances(encoder)
    attention = heads * 2 * q * n + 2 * q * n * wide + (of_queries * q + of_keys * n) * (q + n) * d
    inner, linear_layers = family.ffn_sizes(encoder)
    return projections + attention + linear_layers * q * d * inner + 2 * 2 * q * d


def adapter_macs(config: PFBerxitConfig, hidden_size: int, tokens: Count) -> Count:
    """One adapter over `tokens` positions."""
    with torch.device("meta"):  # its shapes alone
        adapter = Adapter(config, hidden_size)
    return sum(module_macs(module, tokens) for module in adapter.modules())


def module_macs(module: nn.Module, tokens: Count) -> Count:
    """One module over `tokens` positions, without the modules inside it; its `pair_macs`, if it has any, included."""
    pairs = module.pair_macs(tokens) if hasattr(module, "pair_macs") else 0
    if isinstance(module, (nn.Linear, nn.Conv1d)):  # every weight once per position
        return tokens * module.weight.numel() + pairs
    return pairs + (2 * tokens * module.weight.numel() if isinstance(module, nn.LayerNorm) else 0)


def token_macs(encoder: PreTrainedConfig, token_layers: Tensor) -> Tensor:
    """Rows whose tokens exit on their own: the layer each token exits after (B, n), 0 at padding -> (B,).

    A token that has exited still costs its key and its value in every later layer.
    """
    depths = torch.arange(1, num_depths(encoder) + 1)
    staying = (token_layers[..., None] >= depths).sum(1)  # (B, layers)
    return layer_macs(encoder, (token_layers > 0).sum(1, keepdim=True), staying).sum(1)


def exit_macs(config: PFBerxitConfig, hidden_size: int, tokens: Count, head: Head | None = None) -> Count:
    """One exit over a row of `tokens` positions: bypass, dense layer, classifier, LTE head, prototypes, NSP.

    Args:
        head: what the exit is made of; None: as the config has the exits below the last layer.
    """
    head, labels = head or exit_heads(config, config.encoder_config(), 2)[0], config.num_labels
    outcomes = 2 * labels if config.problem_type == MULTI_LABEL else labels
    width = head.width(hidden_size)
    macs = width * (labels + (outcomes if config.use_prototypes else 0) + config.use_lte + 2 * labels * config.use_nsp)
    macs += 0 if head.dense is None else head.read(hidden_size) * head.dense
    macs += {"none": 0, "in": 2 * head.read(hidden_size), "out": 2 * width}[head.norm]
    bypass = PLACEMENTS[config.adapter_placement].bypass and not head.names
    return macs + bypass * adapter_macs(config, hidden_size, tokens)


def depth_macs(config: PFBerxitConfig, tokens: Count, exit_depths: list[int]) -> Tensor:
    """Rows of so many positions after 0, 1, ... n layers, adapters and exits included, (..., n + 1)."""
    encoder, tokens = config.encoder_config(), torch.as_tensor(tokens).long()
    depths = torch.arange(num_depths(encoder) + 1)
    place, beside = PLACEMENTS[config.adapter_placement], adapter_macs(config, encoder.hidden_size, tokens)
    per_layer = layer_macs(encoder, tokens) + (place.attention + place.ffn) * beside
    heads = exit_heads(config, encoder, len(exit_depths))
    costs = (torch.as_tensor(exit_macs(config, encoder.hidden_size, tokens, head)) for head in (heads[0], heads[-1]))
    per_inner, per_last = (cost[..., None] for cost in costs)
    exits = torch.isin(depths, torch.tensor(exit_depths)).cumsum(0)
    at_last = (depths == len(depths) - 1).long()
    return per_layer[..., None] * depths + per_inner * (exits - at_last) + per_last * at_last
