"""Options of a load or save, which of them are refused, and what kind of checkpoint a name leads to.

Nothing here reads a weight; that is in `checkpoints` for models and in `persistence` for encoders.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from .families import FAMILIES
from .heads import CROSS_ENCODER, activation_of
from .validation import refuse, whole

MODEL_TYPE = "pfberxit"
FORMAT_VERSION = 1  # of the checkpoints this code writes; it reads this one and the ones before
AUTO_MAP = {
    "AutoConfig": "configuration_pfberxit.PFBerxitConfig",
    "AutoModel": "modeling_pfberxit.PFBerxitModel",
    "AutoModelForSequenceClassification": "modeling_pfberxit.PFBerxitForSequenceClassification",
}
# Options of a load that hold for the encoder's repository as well. Never `revision`, never `trust_remote_code`.
SHARED_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
# Of `transformers`: they concern how weights are read, and are no fields of a config.
LOADER_OPTIONS = (
    "dtype", "torch_dtype", "device_map", "variant", "use_safetensors", "weights_only", "ignore_mismatched_sizes",
    "output_loading_info", "key_mapping", "low_cpu_mem_usage", "disable_mmap", "tqdm_class", "trust_remote_code",
    "adapter_kwargs", "adapter_name", "from_tf", "from_flax", "state_dict", "gguf_file", "quantization_config",
    "max_memory", "offload_folder", "offload_buffers", "offload_state_dict", "tp_plan", "tp_size", "device_mesh",
    "distributed_config", "use_kernels", "kernel_config", "allow_all_kernels", "fusion_config", "generation_config",
)  # fmt: skip
ONE_DEVICE = "left out: the model is on one device; device_map says which"
# The values an option may have, and the message for any other.
ALLOWED: dict[str, tuple[tuple, str]] = {
    "use_safetensors": ((None, True), "True: pickle files are never read"),
    "weights_only": ((None, True), "True: pickle files are never read"),
    "from_tf": ((None, False), "False: checkpoints are safetensors"),
    "from_flax": ((None, False), "False: checkpoints are safetensors"),
    "gguf_file": ((None,), "left out: a GGUF file holds no encoder this library can walk"),
    "quantization_config": ((None,), "left out: encoders are not quantised here; dtype='bfloat16' halves one"),
    "state_dict": ((None,), "left out: weights come from the checkpoint; model.load_state_dict takes others"),
    "generation_config": ((None,), "left out: a classifier generates nothing"),
    "use_kernels": ((None, False), "False: kernels of the Hub are not used"),
    "kernel_config": ((None,), "left out: kernels of the Hub are not used"),
    "allow_all_kernels": ((None, False), "False: kernels of the Hub are not used"),
    "fusion_config": ((None,), "left out: the layers are walked one by one"),
    **dict.fromkeys(("max_memory", "offload_folder", "tp_plan", "tp_size", "device_mesh", "distributed_config"),
                    ((None,), ONE_DEVICE)),
    **dict.fromkeys(("offload_buffers", "offload_state_dict"), ((None, False), ONE_DEVICE)),
}  # fmt: skip
SAVE_OPTIONS = ("max_shard_size", "token", "variant", "save_peft_format", "save_original_format", "save_function")
PUSH_OPTIONS = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")


def check_load_options(options: dict[str, Any]) -> None:
    """Refuse, by name, what a load cannot do."""
    for name, (values, allowed) in ALLOWED.items():
        if name in options and not any(options[name] is value for value in values):
            refuse(name, options[name], allowed)


def take_dtype(options: dict[str, Any], default: torch.dtype | str) -> torch.dtype | str:
    """Take `dtype`, or its old name `torch_dtype`, out of the options: a floating dtype or "auto".

    Raises:
        ValueError: it is neither, nor the name of one (`"bfloat16"`, `"torch.bfloat16"`).
    """
    old, new = options.pop("torch_dtype", None), options.pop("dtype", None)
    value = old if new is None else new
    if value is None:
        return default
    return "auto" if value == "auto" else floating_dtype("dtype", value)


def floating_dtype(field: str, value: Any) -> torch.dtype:
    """A floating dtype, or the name of one: `"bfloat16"`, `"torch.bfloat16"`."""
    named = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        refuse(field, value, "'auto' or a floating dtype: torch.float32, 'bfloat16' ...")
    return named


def take_device(options: dict[str, Any]) -> torch.device | None:
    """Take `device_map` out of the options: the one device it names, "auto" being the accelerator if there is one."""
    value = options.pop("device_map", None)
    if value is None:
        return None
    named = list(value.values()) if isinstance(value, dict) else [value]
    if named == ["auto"]:
        named = [torch.accelerator.current_accelerator() or "cpu"]
    try:
        devices = {torch.device(each) for each in named}
    except (RuntimeError, TypeError):
        devices = set()
    if len(devices) != 1 or "meta" in map(str, devices):
        refuse("device_map", value, "'auto', or one device for the whole model: 'cpu', 'cuda:0', {'': 0} ...")
    return devices.pop()


def wanted_config(
    kind: type[PreTrainedConfig], source: PreTrainedConfig | str | os.PathLike, where: dict[str, Any],
    options: dict[str, Any],
) -> tuple[PreTrainedConfig, set[str], dict[str, Any]]:  # fmt: skip
    """The config to load with, the fields that `options` set in it, and what else is in `options`."""
    if isinstance(source, PreTrainedConfig):
        return copy.deepcopy(source), set(), options
    loader = {name: options.pop(name) for name in LOADER_OPTIONS if name in options}
    config, unused = kind.from_pretrained(source, return_unused_kwargs=True, **where, **options)
    unused = {name: value for name, value in unused.items() if name not in where}
    return config, options.keys() - unused.keys(), {**loader, **unused}


def check_save_options(options: dict[str, Any], push_to_hub: bool) -> None:
    """Refuse, by name, what a save would not do."""
    if not options.pop("safe_serialization", True):
        refuse("safe_serialization", False, "True: checkpoints are safetensors")
    if options.pop("distributed_checkpoint", False):
        refuse("distributed_checkpoint", True, "False: a checkpoint is one config.json and its model.safetensors")
    if unknown := [name for name in options if name not in SAVE_OPTIONS + PUSH_OPTIONS]:
        refuse("save_pretrained", unknown, f"options it knows: {', '.join(SAVE_OPTIONS + PUSH_OPTIONS)}")
    if not push_to_hub and (unused := [name for name in options if name in PUSH_OPTIONS]):
        refuse(unused[0], options[unused[0]], "left out, or given with push_to_hub=True")
    if push_to_hub and options.get("variant") is not None:
        refuse("variant", options["variant"], "left out with push_to_hub=True")


def check_pretrained_name(field: str, name: Any) -> None:
    """Refuse what can be neither a Hub id nor a folder."""
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        refuse(field, type(name).__name__ if name is not None else None, "a Hub id or a folder")


# ---- kinds of checkpoints --------------------------------------------------------------------------------------------


def readable_format(field: str, value: Any) -> int:
    """A version this code can read."""
    if isinstance(value, int) and value > FORMAT_VERSION:
        refuse(field, value, f"at most {FORMAT_VERSION}: a newer modeling_pfberxit wrote this checkpoint, update yours")
    return whole(1)(field, value)


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
    config = read_config(field, name, **options)
    shown = f"{field}={os.fspath(name)!r}"
    if config.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{shown} is a checkpoint of this library, not an encoder: PFBerxitForSequenceClassification"
            f".from_pretrained({os.fspath(name)!r}) loads it, and from_backbone(PFBerxitConfig.from_pretrained("
            f"{os.fspath(name)!r})) makes a new model on the same encoder."
        )
    if (adapter := locate(name, "adapter_config.json", **options)) is not None:
        refuse_peft(shown, adapter)
    if any(Path(name).glob("pytorch_model*.bin*")) and not any(Path(name).glob("*.safetensors")):
        raise OSError(f"{shown} has its weights in pytorch_model.bin alone; save_pretrained of its own class makes "
                      "safetensors of them.")  # fmt: skip
    if not is_encoder(config):
        what = describe(name, config, **options)
        raise ValueError(f"{shown} is {what}: its model_type must be a supported backbone: {', '.join(FAMILIES)}.")
    return config


def read_classifier(field: str, name: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """The config.json of a fine-tuned sequence classifier of a family this library can walk.

    Raises:
        OSError: there is nothing, or nothing that can be loaded.
        ValueError: it is another kind of checkpoint; the message says which, and what takes it.
    """
    config = read_config(field, name, **options)
    shown = f"{field}={os.fspath(name)!r}"
    if config.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{shown} exits early already, it is a checkpoint of this library: PFBerxitForSequenceClassification"
            f".from_pretrained({os.fspath(name)!r}) loads it. Give the classifier that it was made of."
        )
    read_encoder(field, name, **options)
    if not all(made.endswith("ForSequenceClassification") for made in config.get("architectures") or ["none"]):
        what = describe(name, config, **options)
        raise ValueError(f"{shown} is {what}: must be a ...ForSequenceClassification; from_backbone takes encoders.")
    return config


# What a classifier becomes by default: exits beside it that change nothing on the way, and learn from it.
BESIDE_CLASSIFIER = {
    "last_exit": "classifier", "adapter_placement": "none", "exit_pooling": "both", "exit_pooler": "bottleneck",
    "distillation": 1.0,
}  # fmt: skip
HARMLESS = {
    "last_exit": ("classifier",), "adapter_placement": ("none", "bypass"), "prompt_generator": ("none",),
    "token_exits": (False,), "system": (None,),
}  # fmt: skip
OF_CROSS_ENCODERS = ("sentence_transformers", "sbert_ce_default_activation_function")  # what a reranker's values mean


def as_last_exit(classifier: str | os.PathLike, knobs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `from_backbone` takes to put a classifier's own head at the end, and what else its config says.

    Raises:
        OSError, ValueError: as `read_classifier`; or a knob that would change the classifier's answers.
    """
    where, revision = {name: knobs[name] for name in SHARED_OPTIONS if name in knobs}, knobs.get("revision")
    check_pretrained_name("classifier", classifier)
    where["revision"] = commit_of(classifier, revision, **where) or revision
    stored = read_classifier("classifier", classifier, **where)
    for name, values in HARMLESS.items():
        if name in knobs and knobs[name] not in values:
            refuse(name, knobs[name], f"{' or '.join(map(repr, values))}: a classifier's answers are not changed")
    config = AutoConfig.from_pretrained(classifier, trust_remote_code=False, **where)
    own = {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
    for name, value in {"num_labels": config.num_labels, **own}.items():
        if name in knobs and knobs[name] != value:
            refuse(name, knobs[name], f"left out: the classifier's own is {value!r}")
    if (dtype := take_dtype(knobs, default="auto")) == "auto":  # as `transformers` loads the classifier
        dtype = config.dtype or "auto"
    kept = {name: stored[name] for name in OF_CROSS_ENCODERS if name in stored}
    kept |= activation_of(locate(classifier, CROSS_ENCODER, **where))
    return {**BESIDE_CLASSIFIER, **knobs, **own, "dtype": dtype, "revision": where["revision"]}, kept


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
    if (adapter := locate(name, "adapter_config.json", **options)) is not None:
        refuse_peft(shown, adapter)
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
