"""ALBERT, BERT, RoBERTa, ELECTRA, DistilBERT ... as one list of encoder layers, and what follows from their config.

All of them are the same post-LayerNorm arithmetic under other attribute names. A family is a short view of the stock
`transformers` layer; the stock modules keep the weights and do the work. The forward pass takes the keys and values
apart from the rows that query them, so that a layer can be run for some positions and not others. Adapters are added in
`layers`; which pretrained encoder is loaded is in `persistence`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from .validation import is_readable, refuse

COMMON = {field.name for field in fields(PreTrainedConfig)} | {"is_decoder", "add_cross_attention"}
# Of no meaning to an encoder, or set by `Trainer` on the config of any model.
ELSEWHERE = {"use_cache", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}
USUAL = {"hidden_size", "num_hidden_layers", "num_attention_heads"}  # what tools look for in `to_dict()`
HEADS = {"classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "qa_dropout"}


@cache
def encoder_fields(model_type: str | None) -> dict[str, str]:
    """The names under which a family's configs are read, and the field each stands for: DistilBERT's hidden_size, dim.

    Empty for a family `transformers` does not know.
    """
    if model_type not in CONFIG_MAPPING:
        return {}
    kind = CONFIG_MAPPING[model_type]
    own = {field.name for field in fields(kind)} - COMMON - ELSEWHERE - HEADS
    aliases = {alias: field for alias, field in kind.attribute_map.items() if field in own}
    return {**{field: field for field in own}, **aliases}


class EncoderFields:
    """Reads the encoder's fields for a `PreTrainedConfig` that has a `backbone_config`."""

    def _encoder_fields(self) -> dict[str, str]:
        return encoder_fields((self.__dict__.get("backbone_config") or {}).get("model_type"))

    def __getattr__(self, name: str) -> Any:
        """What the config itself does not have: a field of the encoder, under any of its usual names."""
        if name in self._encoder_fields():
            return getattr(self.encoder_config(), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """As in `transformers`, with the encoder's sizes, which PEFT reads here."""
        sizes = {name: getattr(self, name) for name in USUAL & self._encoder_fields().keys()}
        return {**super().to_dict(), **sizes}  # type: ignore[misc]  # of the config this is mixed into

    def take_back(self, values: dict[str, Any]) -> None:
        """Drop from a config's values the sizes that `to_dict` added; refuse others than the encoder's."""
        for name in USUAL & values.keys() & self._encoder_fields().keys():
            if (given := values.pop(name)) != (own := getattr(self, name)):
                refuse(name, given, f"{own}, as in backbone_config")

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the encoder's sizes in `backbone_config` alone."""
        values = super().to_diff_dict()  # type: ignore[misc]  # of the config this is mixed into
        return {name: value for name, value in values.items() if name not in USUAL}


# ---- layers ----------------------------------------------------------------------------------------------------------

NO_DROPOUT = nn.Identity()
FUSED: dict[type, nn.Module] = {NewGELUActivation: nn.GELU("tanh")}  # ALBERT's


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """A view of one stock layer: y = O(attention(Q x, k, v)); a = LN1(x + y); h = LN2(a + FFN(a))."""

    stock: nn.Module
    containers: tuple[nn.Module, ...]  # inside the layer, never called: their parts are
    attention: nn.Module  # the stock attention, for its head size, scaling and config
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[Tensor], Tensor]
    down: nn.Linear
    output_norm: nn.LayerNorm
    attention_dropout: nn.Dropout
    out_dropout: nn.Module
    ffn_dropout: nn.Module

    def keys_values(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, d) -> keys and values of all heads, (B, n, d) each."""
        return self.key(hidden_states), self.value(hidden_states)

    def attend(self, rows: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attention's output y of the querying positions (B, q, d); weights (B, heads, q, n) where eager keeps them."""
        stock = self.attention
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(stock.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout.p if stock.training else 0.0
        parts = (self._heads(part) for part in (self.query(rows), keys, values))
        mixed, weights = attention(stock, *parts, mask, dropout=dropout, scaling=stock.scaling)
        return self.out_dropout(self.out(mixed.flatten(2))), weights  # mixed: (B, q, heads, d/heads)

    def feed_forward(self, attended: Tensor) -> Tensor:
        """FFN(a), (B, q, d)."""
        return self.ffn_dropout(self.down(self.activation(self.up(attended))))

    def _heads(self, projected: Tensor) -> Tensor:  # (B, n, d) -> (B, heads, n, d/heads)
        # Not `unflatten`: the older of the two ONNX exporters would hold on to this call's length.
        return projected.view(*projected.shape[:-1], -1, self.attention.attention_head_size).transpose(1, 2)


def albert_layer(layer: nn.Module) -> EncoderLayer:
    """ALBERT's layer has no dropout after its FFN."""
    attention = layer.attention
    return EncoderLayer(
        layer, (attention,),
        attention, attention.query, attention.key, attention.value, attention.dense, attention.LayerNorm,
        layer.ffn, layer.activation, layer.ffn_output, layer.full_layer_layer_norm,
        attention.attention_dropout, attention.output_dropout, NO_DROPOUT,
    )  # fmt: skip


def bert_layer(layer: nn.Module) -> EncoderLayer:
    """BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA share their layer's names."""
    attention, output = layer.attention, layer.output
    own = attention.self
    return EncoderLayer(
        layer, (attention, own, attention.output, layer.intermediate, output),
        own, own.query, own.key, own.value, attention.output.dense, attention.output.LayerNorm,
        layer.intermediate.dense, layer.intermediate.intermediate_act_fn, output.dense, output.LayerNorm,
        own.dropout, attention.output.dropout, output.dropout,
    )  # fmt: skip


def distilbert_layer(layer: nn.Module) -> EncoderLayer:
    """DistilBERT's attention has no dropout after its output projection."""
    attention, ffn = layer.attention, layer.ffn
    return EncoderLayer(
        layer, (attention, ffn),
        attention, attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin, layer.sa_layer_norm,
        ffn.lin1, ffn.activation, ffn.lin2, layer.output_layer_norm,
        attention.dropout, NO_DROPOUT, ffn.dropout,
    )  # fmt: skip


def albert_layers(backbone: PreTrainedModel) -> list[EncoderLayer]:
    """One view per executed layer: depths that share weights share the view."""
    config, groups = backbone.config, backbone.encoder.albert_layer_groups
    views = [[albert_layer(layer) for layer in group.albert_layers] for group in groups]
    per_group = config.num_hidden_layers / config.num_hidden_groups
    return [view for i in range(config.num_hidden_layers) for view in views[int(i / per_group)]]


def bert_layers(backbone: PreTrainedModel) -> list[EncoderLayer]:
    """One view per layer."""
    return [bert_layer(layer) for layer in backbone.encoder.layer]


def distilbert_layers(backbone: PreTrainedModel) -> list[EncoderLayer]:
    """One view per layer."""
    return [distilbert_layer(layer) for layer in backbone.transformer.layer]


LAYERS: dict[str, Callable[[PreTrainedModel], list[EncoderLayer]]] = {
    "albert": albert_layers,
    "bert": bert_layers,
    "roberta": bert_layers,
    "xlm-roberta": bert_layers,
    "camembert": bert_layers,
    "electra": bert_layers,
    "distilbert": distilbert_layers,
}
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
SHAPE = (
    "model_type", "hidden_size", "embedding_size", "num_hidden_layers", "num_hidden_groups", "inner_group_num",
    "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size",
    "hidden_act",
)  # fmt: skip
HAVE_POOLER = ("albert", "bert", "roberta", "xlm-roberta", "camembert")


# ---- what the model needs of a backbone -----------------------------------------------------------------------------


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse an architecture this library cannot walk layer by layer, naming those it can."""
    if config.model_type not in LAYERS:
        refuse("model_type", config.model_type, f"a supported backbone: {', '.join(LAYERS)}")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        refuse("is_decoder", True, "False: backbones are bidirectional encoders")


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """What makes an encoder's shape: the fields of its own class, without its old task and how to generate from it."""
    common = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(config)} - common | {"is_decoder", "add_cross_attention"}
    values = config.to_dict()
    return {
        "model_type": config.model_type,
        **{name: values[name] for name in sorted(own) if values.get(name) is not None},
    }


def longest_input(config: PreTrainedConfig) -> int:
    """Tokens a row may have: families that number positions from the padding's id on have room for fewer."""
    taken = config.pad_token_id + 1 if config.model_type in COUNT_FROM_PADDING else 0
    return config.max_position_embeddings - taken


def table_sizes(backbone: PreTrainedModel) -> dict[str, int]:
    """For how many ids of each kind the encoder has an embedding; kinds the family does not know are left out."""
    tables = {"input_ids": "word", "token_type_ids": "token_type", "position_ids": "position"}
    modules = {name: getattr(backbone.embeddings, f"{kind}_embeddings", None) for name, kind in tables.items()}
    known = {name: table for name, table in modules.items() if table is not None}
    return {name: table.num_embeddings for name, table in known.items() if hasattr(table, "num_embeddings")}


def check_kinds(inputs_embeds: Tensor | None = None, **ids: Tensor | None) -> None:
    """Refuse ids that are no whole numbers and tokens that are not in rows."""
    for name, given in ids.items():
        if given is not None and given.dtype not in (torch.int32, torch.int64):
            refuse(name, str(given.dtype), "whole numbers: torch.int64 or torch.int32")
    for name, given, dims in (("input_ids", ids["input_ids"], 2), ("inputs_embeds", inputs_embeds, 3)):
        if given is not None and given.dim() != dims:
            refuse(name, f"of shape {tuple(given.shape)}", f"of {dims} dimensions, rows and tokens the first two")


def check_ids(name: str, ids: Tensor, size: int) -> None:
    """Refuse ids outside 0 to size - 1. Reads their values."""
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= size:
        refuse(name, low if low < 0 else high, f"from 0 to {size - 1}")


def num_depths(config: PreTrainedConfig) -> int:
    """Layers that are executed: ALBERT's inner groups count each."""
    return config.num_hidden_layers * getattr(config, "inner_group_num", 1)


def pooler_option(config: PreTrainedConfig, with_pooler: bool) -> dict[str, bool]:
    """The keyword that builds an encoder with or without its pooler; refuses to want one where there is none."""
    if with_pooler and config.model_type not in HAVE_POOLER:
        refuse("exit_pooler", "backbone", f"'none' or 'own': {config.model_type} has no pooler")
    return {"add_pooling_layer": with_pooler} if config.model_type in HAVE_POOLER else {}


def build_backbone(config: PreTrainedConfig, with_pooler: bool) -> PreTrainedModel:
    """An encoder with random weights."""
    return AutoModel.from_config(config, **pooler_option(config, with_pooler))


def encoder_layers(backbone: PreTrainedModel, fused: bool = False) -> list[EncoderLayer]:
    """The layers in the order they run, one view per depth.

    Args:
        fused: an activation that `transformers` spells out operation by operation is one of torch's instead, if there
            is one; equal to rounding.
    """
    layers = LAYERS[backbone.config.model_type](backbone)
    if not fused or type(layers[0].activation) not in FUSED:
        return layers
    swapped = {id(layer): replace(layer, activation=FUSED[type(layer.activation)]) for layer in layers}
    return [swapped[id(layer)] for layer in layers]


def never_called(backbone: PreTrainedModel, layers: list[EncoderLayer]) -> list[nn.Module]:
    """The stock modules whose parts are called in their place, shared ones as often as they are run."""
    stack = backbone.transformer if backbone.config.model_type == "distilbert" else backbone.encoder
    outer = [backbone, stack, *getattr(stack, "albert_layer_groups", ())]
    pooler = getattr(backbone, "pooler", None)
    if pooler is not None and backbone.config.model_type != "albert":
        outer.append(pooler)
    return outer + [module for layer in layers for module in layer.containers]


def embed(
    backbone: PreTrainedModel,
    input_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Tokens (B, n) or embeddings (B, n, e) -> what the first layer reads, (B, n, d).

    Raises:
        ValueError: rows longer than the encoder has positions for, or ids that it has no embedding for; on an
            accelerator those end in the device's own error.
    """
    inputs = {"input_ids": input_ids, "position_ids": position_ids, "inputs_embeds": inputs_embeds}
    check_kinds(**inputs, token_type_ids=token_type_ids)
    for name, rows in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds)):
        if rows is not None and position_ids is None and rows.shape[1] > (most := longest_input(backbone.config)):
            refuse(name, f"rows of {rows.shape[1]} tokens", f"at most {most} tokens: truncate, truncation=True")
    if backbone.config.model_type != "distilbert":
        inputs["token_type_ids"] = token_type_ids
    try:
        hidden_states = backbone.embeddings(**inputs)
    except (IndexError, RuntimeError):
        for name, size in table_sizes(backbone).items():
            if inputs.get(name) is not None and is_readable(inputs[name]):
                check_ids(name, inputs[name], size)
        raise
    if backbone.config.model_type == "albert":
        return backbone.encoder.embedding_hidden_mapping_in(hidden_states)
    projection = getattr(backbone, "embeddings_project", None)  # ELECTRA, where the sizes differ
    return hidden_states if projection is None else projection(hidden_states)


def pooler_dense(backbone: PreTrainedModel) -> nn.Linear:
    """The linear layer of the encoder's own pooler; tanh follows it in every family."""
    return backbone.pooler if backbone.config.model_type == "albert" else backbone.pooler.dense


def reads_backbone_pooler(config: PreTrainedConfig) -> bool:
    """Whether the exits use the encoder's own pooler, untrained unless the encoder is."""
    return config.exit_pooler == "backbone" and not config.train_pooler


def check_pooler(config: PreTrainedConfig, backbone: PreTrainedModel) -> None:
    """Refuse exits that want the encoder's pooler where its checkpoint has no weights for one."""
    if config.exit_pooler == "backbone" and getattr(backbone, "pooler", None) is None:
        kind = backbone.config.model_type
        refuse("exit_pooler", "backbone", f"'none' or 'own': this {kind} checkpoint has no pooler weights")
