"""What the model needs of its encoder, whatever its family: fields of its config, embeddings, layers, checks.

How families differ is in `families`, the arithmetic of a layer in `encoder_layer`. Which pretrained encoder is loaded
is in `persistence`.
"""

import math
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from .encoder_layer import FULL, StockLayer
from .families import FAMILIES, family_of
from .validation import is_readable, refuse

DECODER = {"is_decoder", "add_cross_attention"}
COMMON = {field.name for field in fields(PreTrainedConfig)} | DECODER
# Of no meaning to an encoder, or set by `Trainer` on the config of any model.
ELSEWHERE = {"use_cache", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}
SIZES = {"hidden_size", "num_hidden_layers", "num_attention_heads"}  # what tools look for in `to_dict()`
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
    own |= set(FAMILIES[model_type].undeclared) if model_type in FAMILIES else set()
    aliases = {alias: field for alias, field in kind.attribute_map.items() if field in own}
    return {**{field: field for field in own}, **aliases}


class EncoderFields:
    """Reads the encoder's fields for a `PreTrainedConfig` that has a `backbone_config`."""

    def _encoder_fields(self) -> dict[str, str]:
        return encoder_fields((self.__dict__.get("backbone_config") or {}).get("model_type"))

    def __getattr__(self, name: str) -> Any:
        """What the config itself does not have: a field of the encoder, under any of its usual names."""
        if field := self._encoder_fields().get(name):
            value = self.backbone_config.get(field)
            # Every module that is initialised asks for a number: a whole config each time took half of making a model.
            return value if isinstance(value, int | float) else getattr(self.encoder_config(), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """As in `transformers`, with the encoder's sizes, which PEFT reads here."""
        sizes = {name: getattr(self, name) for name in SIZES & self._encoder_fields().keys()}
        return {**super().to_dict(), **sizes}  # type: ignore[misc]  # of the config this is mixed into

    def take_back(self, values: dict[str, Any]) -> None:
        """Drop from a config's values the sizes that `to_dict` added; refuse others than the encoder's."""
        for name in SIZES & values.keys() & self._encoder_fields().keys():
            if (given := values.pop(name)) != (own := getattr(self, name)):
                refuse(name, given, f"{own}, as in backbone_config")

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the encoder's sizes in `backbone_config` alone."""
        values = super().to_diff_dict()  # type: ignore[misc]  # of the config this is mixed into
        return {name: value for name, value in values.items() if name not in SIZES}


# ---- what the model needs of a backbone -----------------------------------------------------------------------------


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse an architecture this library cannot walk layer by layer, naming those it can."""
    family_of(config).check(config)
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        refuse("is_decoder", True, "False: backbones are bidirectional encoders")


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """What makes an encoder's shape: the fields of its own class, without its old task and how to generate from it.

    `None` is stated only where it is not what the class has anyway.
    """
    own = ({field.name for field in fields(config)} - COMMON) | DECODER | set(family_of(config).undeclared)
    values, usual = config.to_dict(), {field.name: field.default for field in fields(config)}
    known = [name for name in sorted(own) if name in values]
    stated = {name: values[name] for name in known if values[name] is not None or usual.get(name) is not None}
    return {"model_type": config.model_type, **stated}


def shape_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The family of an encoder, and the fields that make the shapes of its weights."""
    names = ("model_type", *family_of(config).shape)
    return {name: getattr(config, name, None) for name in names}


def longest_input(config: PreTrainedConfig) -> float:
    """Tokens a row may have; infinity where an encoder knows distances alone."""
    if family_of(config).unbounded(config):
        return math.inf
    return config.max_position_embeddings - family_of(config).taken_positions(config)


def table_sizes(backbone: PreTrainedModel) -> dict[str, int]:
    """For how many ids of each kind the encoder has an embedding; kinds the family does not know are left out."""
    inside = getattr(backbone, "embeddings", None)
    tables = {
        "input_ids": backbone.get_input_embeddings(),
        "token_type_ids": getattr(inside, "token_type_embeddings", None),
        "position_ids": getattr(inside, "position_embeddings", None),
    }
    return {name: table.num_embeddings for name, table in tables.items() if hasattr(table, "num_embeddings")}


def check_kinds(inputs_embeds: Tensor | None = None, **ids: Tensor | None) -> None:
    """Refuse ids that are no whole numbers and tokens that are not in rows."""
    for name, given in ids.items():
        kind = getattr(given, "dtype", type(given).__name__)
        if given is not None and kind not in (torch.int32, torch.int64):
            refuse(name, str(kind), "whole numbers: a tensor of torch.int64 or torch.int32")
    for name, given, dims in (("input_ids", ids["input_ids"], 2), ("inputs_embeds", inputs_embeds, 3)):
        if given is not None and given.dim() != dims:
            refuse(name, f"of shape {tuple(given.shape)}", f"of {dims} dimensions, rows and tokens the first two")
        if given is not None and 0 in given.shape[:2]:
            refuse(name, f"of shape {tuple(given.shape)}", "at least one row, and one token in each")


def check_ids(name: str, ids: Tensor, size: int) -> None:
    """Refuse ids outside 0 to size - 1. Reads their values."""
    low, high = (int(end) for end in ids.aminmax())
    if low < 0 or high >= size:
        refuse(name, low if low < 0 else high, f"from 0 to {size - 1}")


def num_depths(config: PreTrainedConfig) -> int:
    """Layers that are executed: ALBERT's inner groups count each."""
    return config.num_hidden_layers * getattr(config, "inner_group_num", 1)


def global_layers(config: PreTrainedConfig) -> list[int]:
    """The layers (1-based) whose positions see the whole row; refuses encoders of which all do."""
    kinds = family_of(config).kinds(config)
    if FULL not in kinds or len(set(kinds)) == 1:
        refuse("exit_layers", "global", "a list of layers, or None for all: this encoder has no local ones")
    return [number for number, kind in enumerate(kinds, 1) if kind == FULL]


def pooler_option(config: PreTrainedConfig, with_pooler: bool) -> dict[str, bool]:
    """The keyword that builds an encoder with or without its pooler; refuses to want one where there is none."""
    has_one = family_of(config).pooler is not None
    if with_pooler and not has_one:
        refuse("exit_pooler", "backbone", f"'none' or 'own': {config.model_type} has no pooler")
    return {"add_pooling_layer": with_pooler} if has_one else {}


def build_backbone(config: PreTrainedConfig, with_pooler: bool, implementation: str | None = None) -> PreTrainedModel:
    """An encoder with random weights, that attends by this implementation where it can."""
    set_attention(config, implementation)
    return AutoModel.from_config(config, **pooler_option(config, with_pooler))


def set_attention(config: PreTrainedConfig, implementation: str | None) -> None:
    """Let the stock encoder of this config attend this way, where it can."""
    config._attn_implementation = implementation if family_of(config).sdpa else "eager"


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with weights of this dtype; the frequencies of rotations stay exact, as where `transformers` loads."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def encoder_layers(
    backbone: PreTrainedModel, fused: bool = False, implementation: str | None = None
) -> list[StockLayer]:
    """The layers in the order they run, one view per depth.

    Args:
        fused: an activation that `transformers` spells out operation by operation is one of torch's instead, if there
            is one; equal to rounding.
        implementation: of attention, "sdpa" or "eager"; None: the stock encoder's.
    """
    layers = family_of(backbone.config).layers(backbone)
    implementation = implementation or backbone.config._attn_implementation
    set_up = {id(layer): layer.set_up(implementation, fused) for layer in layers}  # shared layers stay shared
    return [set_up[id(layer)] for layer in layers]


def never_called(backbone: PreTrainedModel, layers: list[StockLayer]) -> list[nn.Module]:
    """The stock modules whose parts are called in their place, shared ones as often as they are run."""
    outer = [backbone, *family_of(backbone.config).containers(backbone)]
    return outer + [module for layer in layers for module in layer.containers]


def embed(
    backbone: PreTrainedModel, input_ids: Tensor | None = None, token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Tokens (B, n) or embeddings (B, n, e) -> what the first layer reads, (B, n, d).

    Raises:
        ValueError: rows longer than the encoder has positions for, or ids that it has no embedding for; on an
            accelerator those end in the device's own error.
    """
    given = {
        "input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
    }  # fmt: skip
    check_kinds(**given)
    most = longest_input(backbone.config)
    for name, rows in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds)):
        if rows is not None and position_ids is None and rows.shape[1] > most:
            refuse(name, f"rows of {rows.shape[1]} tokens", f"at most {most} tokens: truncate, truncation=True")
    family = family_of(backbone.config)
    inputs = {name: given[name] for name in family.inputs}
    try:
        return family.embed(backbone, inputs)
    except (IndexError, RuntimeError):
        for name, size in table_sizes(backbone).items():
            if inputs.get(name) is not None and is_readable(inputs[name]):
                check_ids(name, inputs[name], size)
        raise


def rotated_positions(
    backbone: PreTrainedModel, position_ids: Tensor | None, hidden_states: Tensor, prompts: bool
) -> Tensor | None:
    """The positions (B, n) a call gives, where layers read them; None where they do not or it gives none."""
    if position_ids is None or "position_ids" in family_of(backbone.config).inputs:
        return None
    if prompts:
        refuse("position_ids", "...", "left out: prompts have positions of their own between those of the tokens")
    shape = hidden_states.shape[:2]
    if position_ids.shape not in (shape, (1, shape[1])):
        refuse("position_ids", tuple(position_ids.shape), f"of the tokens' shape {tuple(shape)}")
    return position_ids.expand(shape)


def pooler_dense(backbone: PreTrainedModel) -> nn.Linear:
    """The linear layer of the encoder's own pooler; tanh follows it in every family."""
    pooler = family_of(backbone.config).pooler
    assert pooler is not None, "check_pooler has refused families without"
    return pooler(backbone)


def reads_backbone_pooler(config: PreTrainedConfig) -> bool:
    """Whether the exits use the encoder's own pooler, untrained unless the encoder is."""
    return config.exit_pooler == "backbone" and not config.train_pooler


def check_pooler(config: PreTrainedConfig, backbone: PreTrainedModel) -> None:
    """Refuse exits that want the encoder's pooler where its checkpoint has no weights for one."""
    if config.exit_pooler == "backbone" and getattr(backbone, "pooler", None) is None:
        kind = backbone.config.model_type
        refuse("exit_pooler", "backbone", f"'none' or 'own': this {kind} checkpoint has no pooler weights")
