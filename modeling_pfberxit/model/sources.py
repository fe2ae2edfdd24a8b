"""What a name leads to: a checkpoint of this library, an encoder, a fine-tuned classifier; or what else, in words.

Only config files are read here. Weights are read in `checkpoints` for models and in `base_encoder` for encoders.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file, logging

from .families import FAMILIES
from .load_options import shared_options, take_dtype
from .validation import refuse

MODEL_TYPE = "pfberxit"
logger = logging.get_logger(__name__)


def check_pretrained_name(field: str, name: Any) -> None:
    """Refuse what can be neither a Hub id nor a folder."""
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        refuse(field, type(name).__name__ if name is not None else None, "a Hub id or a folder")


def locate(name: str | os.PathLike, file: str, **options: Any) -> str | None:
    """A file's local path; None where the folder or repository has no such file."""
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **options)


def commit_of(name: str | os.PathLike, revision: str | None, **options: Any) -> str | None:
    """The commit that a revision of a Hub repository names today: the cache keeps files in a folder called after it.

    None for a folder, and where no config.json can be read.
    """
    if os.path.exists(name):
        return None
    try:
        parts = Path(locate(name, "config.json", revision=revision, **options) or "").parts
    except OSError:  # `read_config` says why
        return None
    commits = [after for before, after in zip(parts, parts[1:]) if before == "snapshots" and len(after) == 40]
    return commits[-1] if commits else None


# ---- three kinds that are wanted -------------------------------------------------------------------------------------


def read_checkpoint(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json of a checkpoint of this library.

    Args:
        field: what the user called it, for the message.
        name: a Hub id or a folder.
        options: where files are found, as `cached_file` takes them.

    Raises:
        OSError: there is nothing, or nothing that can be loaded.
        ValueError: it is a checkpoint of another kind; the message says which, and what takes it.
    """
    config = read_config(field, name, **options)
    if config.get("model_type") == MODEL_TYPE:
        return config
    what = describe(name, config, **options)
    if is_encoder(config):
        takes = f"PFBerxitForSequenceClassification.from_backbone({os.fspath(name)!r}) makes a new model on its encoder"
    else:
        takes = f"a new model needs an encoder of one of these families: {', '.join(FAMILIES)}"
    raise ValueError(f"{field}={os.fspath(name)!r} is no checkpoint of this library but {what}; {takes}.")


def read_encoder(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json of an encoder this library can walk; raises as `read_checkpoint` does."""
    config, shown = read_config(field, name, **options), f"{field}={os.fspath(name)!r}"
    if config.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{shown} is a checkpoint of this library, not an encoder: PFBerxitForSequenceClassification"
            f".from_pretrained({os.fspath(name)!r}) loads it, and from_backbone(PFBerxitConfig.from_pretrained("
            f"{os.fspath(name)!r})) makes a new model on the same encoder."
        )
    check_encoder(shown, name, config, **options)
    return config


def pretrained_encoder(
    name: str | os.PathLike, revision: str | None, **options: Any
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """An encoder's own config, and where it is as our config says it, pinned to the commit of today.

    Raises:
        OSError, ValueError: as `read_encoder`.
    """
    check_pretrained_name("backbone", name)
    name = os.path.abspath(name) if os.path.isdir(name) else os.fspath(name)
    commit = commit_of(name, revision, **options) or revision
    read_encoder("backbone", name, revision=commit, **options)
    config = AutoConfig.from_pretrained(name, revision=commit, trust_remote_code=False, **options)
    return config, {"base_model_name_or_path": name, "base_model_revision": commit}


def check_encoder(shown: str, name: str | os.PathLike, config: dict[str, Any], **options: Any) -> None:
    """Refuse a place that holds no encoder this library can walk, or its weights in a file it does not read.

    Args:
        shown: what the user called it, for the message.
    """
    if (adapter := locate(name, "adapter_config.json", **options)) is not None:
        refuse_peft(shown, adapter)
    if any(Path(name).glob("pytorch_model*.bin*")) and not any(Path(name).glob("*.safetensors")):
        raise OSError(f"{shown} has its weights in pytorch_model.bin alone; save_pretrained of its own class makes "
                      "safetensors of them.")  # fmt: skip
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise ValueError(
            f"{shown} has quantised weights ({method}), which this library does not read: give the checkpoint that "
            "they were made of."
        )
    if not is_encoder(config):
        what = describe(name, config, **options)
        raise ValueError(f"{shown} is {what}: its model_type must be a supported backbone: {', '.join(FAMILIES)}.")


def read_classifier(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json of a fine-tuned sequence classifier of a family this library can walk.

    Raises:
        OSError: there is nothing, or nothing that can be loaded.
        ValueError: it is another kind of checkpoint; the message says which, and what takes it.
    """
    config, shown = read_config(field, name, **options), f"{field}={os.fspath(name)!r}"
    if config.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{shown} exits early already, it is a checkpoint of this library: PFBerxitForSequenceClassification"
            f".from_pretrained({os.fspath(name)!r}) loads it. Give the classifier that it was made of."
        )
    check_encoder(shown, name, config, **options)
    # Where it is not said, as in `transformers`, the checkpoint's head says it: `load_head` refuses one without.
    if not all(made.endswith("ForSequenceClassification") for made in config.get("architectures") or []):
        what = describe(name, config, **options)
        raise ValueError(f"{shown} is {what}: must be a ...ForSequenceClassification; from_backbone takes encoders.")
    return config


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an encoder of a supported family."""
    return config.get("model_type") in FAMILIES and not config.get("is_decoder")


def read_config(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json there, as it is written; where there is none, the error names what is there instead."""
    check_pretrained_name(field, name)
    shown = f"{field}={os.fspath(name)!r}"
    if os.path.isfile(name):
        raise OSError(f"{shown} is a file{gguf(name)}; give the folder that has a config.json beside its weights.")
    try:
        path = locate(name, "config.json", **options)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise OSError(f"{shown} is no folder here, and on the Hub it could not be read: {reason}") from error
    if path is None:
        shown += f", subfolder={folder!r}" if (folder := options.get("subfolder")) else ""
        refuse_without_config(shown, name, **options)
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OSError(f"{shown}: its config.json is no JSON ({error}).") from error
    if not isinstance(config, dict):
        raise OSError(f"{shown}: its config.json holds a {type(config).__name__}, not the fields of a config.")
    return config


# ---- what it is instead ----------------------------------------------------------------------------------------------


def describe(name: str | os.PathLike, config: dict[str, Any], **options: Any) -> str:
    """A checkpoint of another kind, in words."""
    kind, made = config.get("model_type"), (config.get("architectures") or [None])[0]
    if kind is None:
        return "a config.json without a model_type"
    if locate(name, "modules.json", **options):
        return f"a sentence-transformers model (encoder: {kind})"
    if made is None:
        return f"a checkpoint of model_type={kind!r}"
    return f"a {made} (model_type={kind!r}{', a decoder' if config.get('is_decoder') else ''})"


def refuse_without_config(shown: str, name: str | os.PathLike, **options: Any) -> NoReturn:
    """Say what a place without a config.json holds."""
    if (adapter := locate(name, "adapter_config.json", **options)) is not None:
        refuse_peft(shown, adapter)
    folders = [path.parent.name for path in sorted(Path(name).glob("*/config.json"))] if os.path.isdir(name) else []
    within = f"there is one in {', '.join(folders[:4])}" if folders else "there is none"
    if locate(name, "modules.json", **options):
        raise OSError(f"{shown} is a sentence-transformers model without a config.json beside modules.json; {within}.")
    if folders:
        raise OSError(f"{shown} has no config.json; {within}.")
    if os.path.isdir(name) and (files := sorted(Path(name).glob("*.gguf"))):
        raise OSError(f"{shown} holds {files[0].name}{gguf(files[0])}.")
    if locate(name, "tokenizer_config.json", **options) or locate(name, "tokenizer.json", **options):
        raise OSError(f"{shown} holds a tokenizer and no model: there is no config.json.")
    unread = "" if os.path.isdir(name) else ", or it is neither cached nor within reach"
    raise OSError(f"{shown} has no config.json: it is no checkpoint{unread}.")


def refuse_peft(shown: str, path: str) -> NoReturn:
    """Name the PEFT adapter whose adapter_config.json this is, and how to load its model."""
    adapter = json.loads(Path(path).read_text(encoding="utf-8"))
    kind, base = adapter.get("peft_type", "PEFT"), adapter.get("base_model_name_or_path")
    raise ValueError(
        f"{shown} is a PEFT adapter ({kind}) on {base!r}, no model of its own: load the model it stands on and give it "
        "to peft.PeftModel.from_pretrained; merge_and_unload() and save_pretrained make an encoder of both."
    )


def gguf(path: str | os.PathLike) -> str:
    """A word on GGUF files, which hold quantised decoders."""
    return ", a GGUF file, which this library does not read" if os.fspath(path).endswith(".gguf") else ""


# ---- a classifier as the last exit -----------------------------------------------------------------------------------


# What a classifier becomes by default: exits beside it that change nothing on the way, and learn from it.
BESIDE_CLASSIFIER = {
    "last_exit": "classifier", "adapter_placement": "none", "exit_pooling": "both", "exit_pooler": "bottleneck",
    "distillation": 1.0,
}  # fmt: skip
HARMLESS = {
    "last_exit": ("classifier",), "adapter_placement": ("none", "bypass"), "prompt_generator": ("none",),
    "token_exits": (False,), "system": (None,),
}  # fmt: skip
# Where a reranker says what its values mean: fields of its config, and since version 6 a file.
OF_CROSS_ENCODERS = ("sentence_transformers", "sbert_ce_default_activation_function")
CROSS_ENCODER = "config_sentence_transformers.json"


def as_last_exit(classifier: str | os.PathLike, knobs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `from_backbone` takes to put a classifier's own head at the end, and what else its config says.

    Raises:
        OSError, ValueError: as `read_classifier`; or a knob that would change the classifier's answers.
    """
    check_pretrained_name("classifier", classifier)
    where = shared_options(knobs)
    revision = commit_of(classifier, knobs.get("revision"), **where) or knobs.get("revision")
    where["revision"] = revision
    stored = read_classifier("classifier", classifier, **where)
    for name, values in HARMLESS.items():
        if name in knobs and knobs[name] not in values:
            refuse(name, knobs[name], f"{' or '.join(map(repr, values))}: a classifier's answers are not changed")
    config = AutoConfig.from_pretrained(classifier, trust_remote_code=False, **where)
    own = {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    for name, value in {"num_labels": config.num_labels, **own}.items():
        if name in knobs and knobs[name] != value:
            refuse(name, knobs[name], f"left out: the classifier's own is {value!r}")
    dtype = take_dtype(knobs, default="auto")
    if dtype == "auto":  # as `transformers` loads the classifier
        dtype = config.dtype or "auto"
    kept = {name: stored[name] for name in (*OF_CROSS_ENCODERS, "return_dict") if name in stored}
    if shown := [name for name in ("output_hidden_states", "output_attentions") if stored.get(name)]:
        logger.warning(f"{' and '.join(shown)}: left behind, since all layers of all rows would be run for them; "
                       f"model.config.{shown[0]} = True asks for them.")  # fmt: skip
    kept |= activation_of(locate(classifier, CROSS_ENCODER, **where))
    return {**BESIDE_CLASSIFIER, **knobs, **own, "dtype": dtype, "revision": revision}, kept


def activation_of(path: str | None) -> dict[str, Any]:
    """What a `CrossEncoder` makes of its logits by its file, as a config says it; nothing where none does."""
    stated = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    if stated.get("model_type") != "CrossEncoder" or not stated.get("activation_fn"):
        return {}
    return {"sentence_transformers": {"activation_fn": stated["activation_fn"]}}
