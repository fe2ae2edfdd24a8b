"""ElasticBERT's published checkpoints: a BERT with a pooler at every exit, under other names."""

import os
import re
from typing import Any

from safetensors.torch import load_file
from transformers import BertConfig, PreTrainedConfig

from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import weight_files

RENAMED = (
    (re.compile(r"^(elasticbert|bert)\."), ""),
    (re.compile(r"^(embeddings|encoder\.layer)\."), r"backbone.\1."),
    (re.compile(r"LayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta$"), "LayerNorm.bias"),
)
POOLER = re.compile(r"^encoder\.pooler\.(\d+)\.dense\.(\w+)$")


def rename(key: str, exit_depths: list[int], shared: bool = False) -> str | None:
    """A published key as this library has it; None for the pooler of a layer without an exit.

    Published poolers are numbered by layer, ours by exit: with exits after layers 2 and 4,
    `elasticbert.encoder.pooler.3.dense.bias` is `exits.poolers.1.bias`. One head for all exits has the last layer's.
    """
    for pattern, replacement in RENAMED:
        key = pattern.sub(replacement, key)
    if not (pooler := POOLER.match(key)):
        return key
    layer, part = int(pooler[1]) + 1, pooler[2]
    kept = exit_depths[-1:] if shared else exit_depths
    return f"exits.poolers.{kept.index(layer)}.{part}" if layer in kept else None


def from_elasticbert(
    source: str | os.PathLike, revision: str | None = None, **knobs: Any
) -> PFBerxitForSequenceClassification:
    """A model for fine-tuning, from a checkpoint in ElasticBERT's published layout.

    Args:
        source: a Hub id (`fnlp/elasticbert-base`) or a folder with config.json and model.safetensors.
        knobs: fields of the config, beside those of the system `elasticbert`, and Hub options (`token`, `cache_dir`).

    Raises:
        OSError: no safetensors weights, or some the model needs are not among them.
    """
    options = {name: knobs.pop(name) for name in ("token", "cache_dir", "local_files_only") if name in knobs}
    spec, _ = PreTrainedConfig.get_config_dict(str(source), revision=revision, **options)
    known = set(BertConfig().to_dict()) - {"model_type"}
    encoder = BertConfig(**{name: value for name, value in spec.items() if name in known})
    files = weight_files(str(source), revision=revision, **options)
    if not files:
        raise OSError(f"{source}: no model.safetensors; weights in other formats are not read. Convert them first.")
    model = PFBerxitForSequenceClassification.from_backbone(encoder, **{**knobs, "system": "elasticbert"})
    published = {key: value for file in files for key, value in load_file(file).items()}
    renamed = ((rename(key, model.exit_depths, model.config.exit_shared), value) for key, value in published.items())
    weights = {key: value for key, value in renamed if key is not None}
    new = model.state_dict()  # the classifiers
    if needed := [key for key in new if key.startswith(("backbone.", "exits.poolers.")) and key not in weights]:
        raise OSError(f"{source}: its weights lack {needed[:3]} ..., so this is not ElasticBERT's layout.")
    model.load_state_dict({**new, **{key: value for key, value in weights.items() if key in new}})
    return model
