"""What a name leads to: a checkpoint of this library, an encoder, or something else that is then called by its name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from transformers.utils import cached_file

from .backbones import LAYERS
from .load_options import check_pretrained_name

MODEL_TYPE = "pfberxit"


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
        takes = f"a new model needs an encoder of one of these families: {', '.join(LAYERS)}"
    raise ValueError(f"{field}={os.fspath(name)!r} is no checkpoint of this library but {what}; {takes}.")


def read_encoder(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json of an encoder this library can walk; raises as `read_checkpoint` does."""
    config = read_config(field, name, **options)
    shown = f"{field}={os.fspath(name)!r}"
    if config.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{shown} is a checkpoint of this library, not an encoder: PFBerxitForSequenceClassification"
            f".from_pretrained({os.fspath(name)!r}) loads it, and from_backbone(PFBerxitConfig.from_pretrained("
            f"{os.fspath(name)!r})) makes a new model on the same encoder."
        )
    if has(name, "adapter_config.json", **options):
        refuse_peft(shown, name, **options)
    if not is_encoder(config):
        what = describe(name, config, **options)
        raise ValueError(f"{shown} is {what}: its model_type must be a supported backbone: {', '.join(LAYERS)}.")
    return config


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of an encoder of a supported family."""
    return config.get("model_type") in LAYERS and not config.get("is_decoder")


def read_config(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json there, as it is written; where there is none, an error that says what is there instead."""
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


# ---- what it is instead ---------------------------------------------------------------------------------------------


def describe(name: str | os.PathLike, config: dict[str, Any], **options: Any) -> str:
    """A checkpoint of another kind, in words."""
    kind, made = config.get("model_type"), (config.get("architectures") or [None])[0]
    if kind is None:
        return "a config.json without a model_type"
    if has(name, "modules.json", **options):
        return f"a sentence-transformers model (encoder: {kind})"
    if made is None:
        return f"a checkpoint of model_type={kind!r}"
    return f"a {made} (model_type={kind!r}{', a decoder' if config.get('is_decoder') else ''})"


def refuse_without_config(shown: str, name: str | os.PathLike, **options: Any) -> NoReturn:
    """Say what a place without a config.json holds."""
    if has(name, "adapter_config.json", **options):
        refuse_peft(shown, name, **options)
    folders = [path.parent.name for path in sorted(Path(name).glob("*/config.json"))] if os.path.isdir(name) else []
    within = f"there is one in {', '.join(folders[:4])}" if folders else "there is none"
    if has(name, "modules.json", **options):
        raise OSError(f"{shown} is a sentence-transformers model without a config.json beside modules.json; {within}.")
    if folders:
        raise OSError(f"{shown} has no config.json; {within}.")
    if os.path.isdir(name) and (files := sorted(Path(name).glob("*.gguf"))):
        raise OSError(f"{shown} holds {files[0].name}{gguf(files[0])}.")
    if has(name, "tokenizer_config.json", **options) or has(name, "tokenizer.json", **options):
        raise OSError(f"{shown} holds a tokenizer and no model: there is no config.json.")
    raise OSError(f"{shown} has no config.json: it is no checkpoint.")


def refuse_peft(shown: str, name: str | os.PathLike, **options: Any) -> NoReturn:
    """Say that it is a PEFT adapter, and how to have its model."""
    path = locate(name, "adapter_config.json", **options)
    adapter = json.loads(Path(path).read_text(encoding="utf-8"))
    kind, base = adapter.get("peft_type", "PEFT"), adapter.get("base_model_name_or_path")
    raise ValueError(
        f"{shown} is a PEFT adapter ({kind}) on {base!r}, no model of its own: load the model it stands on and give it "
        "to peft.PeftModel.from_pretrained; merge_and_unload() and save_pretrained make an encoder of both."
    )


def gguf(path: str | os.PathLike) -> str:
    """A word on GGUF files, which hold quantised decoders."""
    return ", a GGUF file, which this library does not read" if os.fspath(path).endswith(".gguf") else ""


def has(name: str | os.PathLike, file: str, **options: Any) -> bool:
    """Whether there is such a file."""
    return locate(name, file, **options) is not None


def locate(name: str | os.PathLike, file: str, **options: Any) -> str | None:
    """Its local path; None where the folder or repository has no such file."""
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
