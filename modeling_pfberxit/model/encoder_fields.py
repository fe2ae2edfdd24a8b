"""The encoder's own fields: stored once, in `backbone_config`, and read under their usual names."""

from dataclasses import fields
from functools import cache
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from .validation import refuse

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
        return {**super().to_dict(), **{name: getattr(self, name) for name in USUAL & self._encoder_fields().keys()}}

    def take_back(self, values: dict[str, Any]) -> None:
        """Drop from a config's values the sizes that `to_dict` added; refuse others than the encoder's."""
        for name in USUAL & values.keys() & self._encoder_fields().keys():
            if (said := values.pop(name)) != (own := getattr(self, name)):
                refuse(name, said, f"{own}, as in backbone_config")

    def to_diff_dict(self) -> dict[str, Any]:
        """What config.json holds: the encoder's sizes stand in `backbone_config` alone."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in USUAL}
