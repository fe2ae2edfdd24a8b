"""ElasticBERT's published checkpoints: a BERT with a pooler at every exit, under other names."""

import os
import re
from typing import Any

from safetensors.torch import load_file
from transformers import BertConfig, PreTrainedConfig

from ..modeling_pfberxit import PFBerxitForSequenceClassification
from ..persistence import weight_files

RENAMED = (
    (re.compile(r"^(elasticbert|bert)\."), ""),
    (re.compile(r"^encoder\.pooler\.(\d+)\.dense\."), r"exits.poolers.\1."),
    (re.compile(r"^(embeddings|encoder\.layer)\."), r"backbone.\1."),
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)


def rename(key: str) -> str:
    """A published key as this library has it: `elasticbert.encoder.pooler.3.dense.bias` -> `exits.poolers.3.bias`."""
    for pattern, replacement in RENAMED:
        key = pattern.sub(replacement, key)
    return key


def from_elasticbert(
    source: str | os.PathLike, revision: str | None = None, **knobs: Any
) -> PFBerxitForSequenceClassification:
    """A model for fine-tuning, from a checkpoint in ElasticBERT's published layout.

    Args:
        source: a Hub id (`fnlp/elasticbert-base`) or a folder with config.json and model.safetensors.
        knobs: fields of the config, beside those of the system `elasticbert`.

    Raises:
        OSError: no safetensors weights, or some the model needs are not among them.
    """
    options = {} if revision is None else {"revision": revision}
    spec, _ = PreTrainedConfig.get_config_dict(str(source), **options)
    encoder = BertConfig(**{name: value for name, value in spec.items() if name in BertConfig().to_dict()})
    files = weight_files(str(source), **options)
    if not files:
        raise OSError(f"{source}: no model.safetensors; weights in other formats are not read. Convert them first.")
    weights = {rename(key): value for file in files for key, value in load_file(file).items()}
    model = PFBerxitForSequenceClassification.from_backbone(encoder, **{**knobs, "system": "elasticbert"})
    missing, unused = model.load_state_dict(weights, strict=False)
    needed = [key for key in missing if key.startswith("backbone.") or key.startswith("exits.poolers.")]
    if needed:
        raise OSError(f"{source}: its weights lack {needed[:3]} ..., so this is not ElasticBERT's layout.")
    return model
