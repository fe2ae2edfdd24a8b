"""Encoder families: one record each, with everything that one family does in another way than the others.

Nothing outside this file asks which family an encoder is of: `family_of(config)` gives its record. All records stand in
`FAMILIES`, at the end; what they are made of is above it, in `rotary`, in `deberta` and, for classifiers, in `heads`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .deberta import deberta_containers, deberta_context, deberta_distances, deberta_layer
from .encoder_layer import Context, Places, StockLayer, padding_alone, post_norm, same
from .heads import (
    Head,
    albert_head,
    bert_head,
    deberta_head,
    distilbert_head,
    eurobert_head,
    head_in_two,
    heads_of,
    modernbert_head,
)
from .rotary import (
    eurobert_layer,
    fixed_rotation,
    gte_layer,
    jina_layer,
    modernbert_context,
    modernbert_layer,
    nomic_layer,
    rotary_context,
)
from .validation import refuse

# ---- contexts --------------------------------------------------------------------------------------------------------


def mpnet_context(backbone: PreTrainedModel, rows: Places, kind: str) -> Context:
    """One bias for all layers, by how far two positions are apart: (1 or B, heads, n, n)."""
    places, encoder = rows.places(), backbone.encoder
    bias = encoder.relative_attention_bias(encoder.relative_position_bucket(places[:, None] - places[:, :, None]))
    bias = bias.permute(0, 3, 1, 2)
    if rows.padding_mask is not None:
        bias = bias.masked_fill((rows.padding_mask == 0)[:, None, None], torch.finfo(bias.dtype).min)
    return Context(bias)


# ---- embeddings ------------------------------------------------------------------------------------------------------

INPUTS = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")


def albert_embed(backbone: PreTrainedModel, inputs: dict[str, Tensor | None]) -> Tensor:
    """ALBERT's embeddings are narrower than its states."""
    return backbone.encoder.embedding_hidden_mapping_in(backbone.embeddings(**inputs))


def electra_embed(backbone: PreTrainedModel, inputs: dict[str, Tensor | None]) -> Tensor:
    """ELECTRA's embeddings may be."""
    projection = getattr(backbone, "embeddings_project", same)
    return projection(backbone.embeddings(**inputs))


def eurobert_embed(backbone: PreTrainedModel, inputs: dict[str, Tensor | None]) -> Tensor:
    """EuroBERT's embeddings are those of its tokens."""
    embeddings, ids = inputs["inputs_embeds"], inputs["input_ids"]
    return backbone.embed_tokens(ids) if embeddings is None else embeddings


# ---- the record ------------------------------------------------------------------------------------------------------

BERT_SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "type_vocab_size", "hidden_act",
)  # fmt: skip
DEBERTA_SHAPE = ("embedding_size", "position_buckets", "share_att_key", "conv_kernel_size")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the rest of the library must know of one kind of encoder."""

    layers: Callable[[PreTrainedModel], list[StockLayer]]  # one view per executed layer; shared layers, shared views
    context: Callable[[PreTrainedModel, Places, str], Context] = padding_alone  # for layers of one kind
    inputs: tuple[str, ...] = INPUTS  # what its embeddings read
    embed: Callable[[PreTrainedModel, dict[str, Any]], Tensor] = lambda backbone, inputs: backbone.embeddings(**inputs)
    final_norm: Callable[[PreTrainedModel], Callable[[Tensor], Tensor]] = lambda backbone: same  # in front of an exit
    pooler: Callable[[PreTrainedModel], nn.Linear] | None = None  # its linear layer, tanh behind it; None: no pooler
    unbounded: Callable[[PreTrainedConfig], bool] = lambda config: False  # rows of any length: it knows distances only
    taken_positions: Callable[[PreTrainedConfig], int] = lambda config: 0  # rows of positions no token can have
    containers: Callable[[PreTrainedModel], list[nn.Module]]  # outside its layers, modules that are never called
    check: Callable[[PreTrainedConfig], None] = lambda config: None  # refuses what no row may depend on
    kinds: Callable[[PreTrainedConfig], list[str]] = lambda config: []  # of its layers, where they differ
    per_layer: tuple[str, ...] = ()  # fields of its config with a value for every layer
    sdpa: bool = True  # whether the stock model has it
    shape: tuple[str, ...] = BERT_SHAPE  # fields of its config that make the shapes of its weights
    undeclared: tuple[str, ...] = ()  # what its checkpoints' configs hold and its config's class does not name
    ffn_sizes: Callable[[PreTrainedConfig], tuple[int, int]] = field(  # its width, and how many linear layers
        default=lambda config: (config.intermediate_size, 2)
    )
    # How many products with the table of distances are in its scores, of queries and of keys.
    distances: Callable[[PreTrainedConfig], tuple[int, int]] = lambda config: (0, 0)
    head: Callable[[PreTrainedConfig], Head] | None = None  # of its own classifier; None: not known
    former_prefix: str | None = None  # what names of weights begin with in its first checkpoints


def dense_pooler(backbone: PreTrainedModel) -> nn.Linear:
    """BERT's."""
    return backbone.pooler.dense


def after_padding(config: PreTrainedConfig) -> int:
    """RoBERTa numbers positions from the padding's id on."""
    return config.pad_token_id + 1


def pooler_alone(backbone: PreTrainedModel) -> list[nn.Module]:
    """Of encoders that call their layers themselves."""
    pooler = getattr(backbone, "pooler", None)
    return [] if pooler is None else [pooler]


def stack_and_pooler(backbone: PreTrainedModel) -> list[nn.Module]:
    """Of BERT and its relatives."""
    return [backbone.encoder, *pooler_alone(backbone)]


def gated(config: PreTrainedConfig) -> tuple[int, int]:
    """The FFN's width, and three linear layers of it."""
    return config.intermediate_size, 3


def albert_containers(backbone: PreTrainedModel) -> list[nn.Module]:
    """ALBERT's pooler is a linear layer, which is called."""
    return [backbone.encoder, *backbone.encoder.albert_layer_groups]


# ---- layers ----------------------------------------------------------------------------------------------------------


def albert_layer(layer: nn.Module) -> StockLayer:
    """ALBERT's layer has no dropout after its FFN."""
    own = layer.attention
    return StockLayer(
        stock=layer, containers=(own,),
        attention=own, head_size=own.attention_head_size, scaling=own.scaling,
        query=own.query, key=own.key, value=own.value, out=own.dense,
        up=layer.ffn, activation=layer.activation, down=layer.ffn_output,
        norms=post_norm(own.LayerNorm, layer.full_layer_layer_norm),
        attention_dropout=own.attention_dropout.p, out_dropout=own.output_dropout,
    )  # fmt: skip


def albert_layers(backbone: PreTrainedModel) -> list[StockLayer]:
    """One view per executed layer: depths that share weights share the view."""
    config, groups = backbone.config, backbone.encoder.albert_layer_groups
    views: list[list[StockLayer]] = [[albert_layer(layer) for layer in group.albert_layers] for group in groups]
    per_group = config.num_hidden_layers / config.num_hidden_groups
    return [view for i in range(config.num_hidden_layers) for view in views[int(i / per_group)]]


def bert_layer(layer: nn.Module) -> StockLayer:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA share their layer's names."""
    attention, output = layer.attention, layer.output
    own = attention.self
    return StockLayer(
        stock=layer, containers=(attention, own, attention.output, layer.intermediate, output),
        attention=own, head_size=own.attention_head_size, scaling=own.scaling,
        query=own.query, key=own.key, value=own.value, out=attention.output.dense,
        up=layer.intermediate.dense, activation=layer.intermediate.intermediate_act_fn, down=output.dense,
        norms=post_norm(attention.output.LayerNorm, output.LayerNorm),
        attention_dropout=own.dropout.p, out_dropout=attention.output.dropout, ffn_dropout=output.dropout,
    )  # fmt: skip


def distilbert_layer(layer: nn.Module) -> StockLayer:
    """DistilBERT's attention has no dropout after its output projection."""
    own, ffn = layer.attention, layer.ffn
    return StockLayer(
        stock=layer, containers=(own, ffn),
        attention=own, head_size=own.attention_head_size, scaling=own.scaling,
        query=own.q_lin, key=own.k_lin, value=own.v_lin, out=own.out_lin,
        up=ffn.lin1, activation=ffn.activation, down=ffn.lin2,
        norms=post_norm(layer.sa_layer_norm, layer.output_layer_norm),
        attention_dropout=own.dropout.p, ffn_dropout=ffn.dropout,
    )  # fmt: skip


def mpnet_layer(layer: nn.Module) -> StockLayer:
    """MPNet: BERT's layer under other names, its bias among the context."""
    attention, output = layer.attention, layer.output
    own = attention.attn
    return StockLayer(
        stock=layer, containers=(attention, own, layer.intermediate, output),
        attention=own, head_size=own.attention_head_size, scaling=own.attention_head_size**-0.5,
        query=own.q, key=own.k, value=own.v, out=own.o,
        up=layer.intermediate.dense, activation=layer.intermediate.intermediate_act_fn, down=output.dense,
        norms=post_norm(attention.LayerNorm, output.LayerNorm),
        attention_dropout=own.dropout.p, out_dropout=attention.dropout, ffn_dropout=output.dropout,
    )  # fmt: skip


def each_layer(view: Callable[[nn.Module], StockLayer]) -> Callable[[PreTrainedModel], list[StockLayer]]:
    """One view per layer, of encoders that call their layers themselves."""
    return lambda backbone: [view(layer) for layer in backbone.layers]


# ---- all families ----------------------------------------------------------------------------------------------------

BERT = Family(
    layers=lambda backbone: [bert_layer(layer) for layer in backbone.encoder.layer],
    pooler=dense_pooler,
    containers=stack_and_pooler,
    head=bert_head,
)
ROBERTA = replace(BERT, taken_positions=after_padding, head=head_in_two)
ROTARY_SHAPE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "rope_parameters",
)  # fmt: skip
ROTARY = Family(
    layers=each_layer(nomic_layer),
    context=rotary_context,
    inputs=("input_ids", "token_type_ids", "inputs_embeds"),
    pooler=dense_pooler,
    containers=pooler_alone,
    check=fixed_rotation,
    shape=(*ROTARY_SHAPE, "type_vocab_size", "head_dim", "hidden_act"),
    undeclared=("head_dim",),
)
FAMILIES: dict[str, Family] = {
    "albert": Family(
        layers=albert_layers,
        embed=albert_embed,
        pooler=lambda backbone: backbone.pooler,
        containers=albert_containers,
        shape=(*BERT_SHAPE, "embedding_size", "num_hidden_groups", "inner_group_num"),
        head=albert_head,
    ),
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": replace(
        BERT,
        embed=electra_embed,
        pooler=None,
        shape=(*BERT_SHAPE, "embedding_size"),
        head=partial(head_in_two, activation="gelu"),
    ),
    "distilbert": Family(
        layers=lambda backbone: [distilbert_layer(layer) for layer in backbone.transformer.layer],
        inputs=("input_ids", "position_ids", "inputs_embeds"),
        containers=lambda backbone: [backbone.transformer],
        shape=("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size", "max_position_embeddings", "activation"),
        ffn_sizes=lambda config: (config.hidden_dim, 2),
        head=distilbert_head,
    ),
    "mpnet": Family(
        layers=lambda backbone: [mpnet_layer(layer) for layer in backbone.encoder.layer],
        context=mpnet_context,
        inputs=("input_ids", "position_ids", "inputs_embeds"),
        pooler=dense_pooler,
        containers=stack_and_pooler,
        taken_positions=lambda config: 2,  # whatever the config says of the padding
        sdpa=False,
        shape=(*BERT_SHAPE, "relative_attention_num_buckets"),
        head=head_in_two,
    ),
    "deberta-v2": Family(
        layers=lambda backbone: [deberta_layer(layer, backbone.encoder) for layer in backbone.encoder.layer],
        context=deberta_context,
        unbounded=lambda config: not config.position_biased_input,
        containers=deberta_containers,
        sdpa=False,
        shape=(*BERT_SHAPE, *DEBERTA_SHAPE, "relative_attention", "max_relative_positions", "position_biased_input"),
        undeclared=(*DEBERTA_SHAPE, "norm_rel_ebd", "conv_act", "conv_groups", "pooler_hidden_size", "cls_dropout"),
        distances=deberta_distances,
        head=deberta_head,
    ),
    "nomic_bert": replace(ROTARY, ffn_sizes=gated, head=partial(bert_head, encoder="nomic_bert")),
    "gte": replace(
        ROTARY,
        layers=each_layer(gte_layer),
        ffn_sizes=gated,
        head=partial(bert_head, encoder="gte"),
        former_prefix="new",
    ),
    "jina_embeddings_v3": replace(ROTARY, layers=each_layer(jina_layer), head=head_in_two),
    "modernbert": Family(
        layers=each_layer(modernbert_layer),
        context=modernbert_context,
        inputs=("input_ids", "inputs_embeds"),
        final_norm=lambda backbone: backbone.final_norm,
        containers=lambda backbone: [],
        check=fixed_rotation,
        kinds=lambda config: config.layer_types,
        per_layer=("layer_types",),
        shape=(*ROTARY_SHAPE, "layer_types", "local_attention", "hidden_activation"),
        ffn_sizes=gated,
        head=modernbert_head,
    ),
    "eurobert": Family(
        layers=each_layer(eurobert_layer),
        context=rotary_context,
        inputs=("input_ids", "inputs_embeds"),
        embed=eurobert_embed,
        final_norm=lambda backbone: backbone.norm,
        containers=lambda backbone: [],
        check=fixed_rotation,
        shape=(*ROTARY_SHAPE, "num_key_value_heads", "head_dim", "hidden_act"),
        ffn_sizes=gated,
        head=eurobert_head,
    ),
}


def family_of(config: PreTrainedConfig) -> Family:
    """The record of a config's family; refuses one that there is none for."""
    if config.model_type not in FAMILIES:
        refuse("model_type", config.model_type, f"a supported backbone: {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]


def classifier_head(config: PreTrainedConfig) -> Head:
    """The head that `transformers` puts on an encoder for sequence classification; refuses one that is not known."""
    if (head := family_of(config).head) is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.head is not None)
        refuse("model_type", config.model_type, f"a family whose classifier is known: {known}")
    return head(config)


def exit_heads(config: PreTrainedConfig, encoder: PreTrainedConfig, exits: int) -> list[Head]:
    """What the heads of a model's exits are made of, one each or one for all."""
    return heads_of(config, encoder, exits, classifier_head)
