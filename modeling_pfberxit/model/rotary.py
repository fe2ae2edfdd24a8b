"""Encoders that turn queries and keys by their positions: ModernBERT, NomicBERT, GTE, Jina v3, EuroBERT."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .encoder_layer import (
    FULL,
    Context,
    FusedLayer,
    Places,
    StockLayer,
    as_summand,
    padding_alone,
    post_norm,
    pre_norm,
)
from .validation import is_recorded, refuse

# ---- contexts --------------------------------------------------------------------------------------------------------


def rotary_context(backbone: PreTrainedModel, rows: Places, kind: str) -> Context:
    """Cosines and sines are the same for all layers."""
    return padding_alone(backbone, rows)._replace(rotary=backbone.rotary_emb(rows.hidden_states, rows.positions()))


def modernbert_context(backbone: PreTrainedModel, rows: Places, kind: str) -> Context:
    """Global and local layers have frequencies of their own, and local ones see so many tokens to each side."""
    rotary = backbone.rotary_emb(rows.hidden_states, rows.positions(), kind)
    width, longest = backbone.config.sliding_window, rows.hidden_states.shape[1]
    if kind == FULL or (not is_recorded(rows.hidden_states) and longest <= width + 1):
        return padding_alone(backbone, rows)._replace(rotary=rotary)
    return Context(mask=local_mask(rows, width, backbone.config._attn_implementation), rotary=rotary)


def local_mask(rows: Places, width: int, implementation: str) -> Tensor:
    """Who is at most `width` places away and no padding, (1 or B, 1, n, n), as the attention wants it."""
    places = rows.places()
    here, there = places[:, None, :, None], places[:, None, None, :]
    mask = (there <= here + width) & (there >= here - width)
    if rows.padding_mask is not None:
        tokens = rows.padding_mask != 0
        # Padding may have no token near it: it looks at all of them, since of none it would become NaN.
        mask = (mask | ~tokens[:, None, :, None]) & tokens[:, None, None]
    return as_summand(mask, rows.hidden_states.dtype) if implementation == "eager" else mask


def fixed_rotation(config: PreTrainedConfig) -> None:
    """Refuse frequencies that change with the longest row of a batch: a row's answer would depend on the others."""
    parameters: dict[str, Any] = config.rope_parameters
    for each in (parameters, *parameters.values()):
        kind = each.get("rope_type") if isinstance(each, dict) else None
        if kind in ("dynamic", "longrope"):
            refuse("rope_type", kind, "one whose frequencies do not depend on how long a batch is")


# ---- layers ----------------------------------------------------------------------------------------------------------


def attention_of(own: nn.Module) -> dict[str, Any]:
    """The parts of an attention as these families name them."""
    return {
        "attention": own, "head_size": own.head_dim, "scaling": own.scaling, "attention_dropout": own.attention_dropout,
        "query": own.q_proj, "key": own.k_proj, "value": own.v_proj, "out": own.o_proj,
        "groups": getattr(own, "num_key_value_groups", 1),
    }  # fmt: skip


def gated_ffn(mlp: nn.Module) -> dict[str, Any]:
    """The parts of a gated FFN."""
    return {"up": mlp.gate_proj, "activation": mlp.act_fn, "gate": mlp.up_proj, "down": mlp.down_proj}


def behind_halves(layer: nn.Module) -> dict[str, Any]:
    """Norms and dropouts of a post-norm layer."""
    return {
        "norms": post_norm(layer.post_attention_layernorm, layer.post_mlp_layernorm),
        "out_dropout": layer.post_attention_dropout, "ffn_dropout": layer.post_mlp_dropout,
    }  # fmt: skip


def nomic_layer(layer: nn.Module) -> StockLayer:
    """Post-norm, gated."""
    own, mlp = layer.self_attn, layer.mlp
    return StockLayer(layer, (own, mlp), **attention_of(own), **gated_ffn(mlp), **behind_halves(layer))


def gte_layer(layer: nn.Module) -> StockLayer:
    """NomicBERT's with a dropout inside the FFN."""
    return replace(nomic_layer(layer), inner_dropout=layer.mlp.dropout)


def jina_layer(layer: nn.Module) -> StockLayer:
    """Post-norm, with BERT's FFN."""
    own, mlp = layer.self_attn, layer.mlp
    ffn = {"up": mlp.fc1, "activation": mlp.activation_fn, "down": mlp.fc2}
    return StockLayer(layer, (own, mlp), **attention_of(own), **ffn, **behind_halves(layer))


def eurobert_layer(layer: nn.Module) -> StockLayer:
    """Pre-norm, gated, several heads for one of keys and values."""
    own, mlp = layer.self_attn, layer.mlp
    norms = pre_norm(layer.input_layernorm, layer.post_attention_layernorm)
    return StockLayer(layer, (own, mlp), **attention_of(own), **gated_ffn(mlp), norms=norms)


def modernbert_layer(layer: nn.Module) -> FusedLayer:
    """Pre-norm, gated, both in fewer and larger linear layers; the first layer's first norm is none."""
    own, mlp = layer.attn, layer.mlp
    return FusedLayer(
        stock=layer, containers=(own, mlp), kind=layer.attention_type,
        attention=own, head_size=own.head_dim, scaling=own.head_dim**-0.5,
        query=own.Wqkv, key=own.Wqkv, value=own.Wqkv, out=own.Wo,
        up=mlp.Wi, activation=mlp.act, down=mlp.Wo,
        norms=pre_norm(layer.attn_norm, layer.mlp_norm),
        attention_dropout=own.attention_dropout, out_dropout=own.out_drop, inner_dropout=mlp.drop,
    )  # fmt: skip
