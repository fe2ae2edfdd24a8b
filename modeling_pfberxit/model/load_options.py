"""Options of a load or a save: those that are taken, and those that are refused by name.

What kind of checkpoint a name leads to is in `sources`.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from transformers import PreTrainedConfig

from .validation import either_way, refuse, whole

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


def shared_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of some options that hold for the encoder's repository as well."""
    return {name: options[name] for name in SHARED_OPTIONS if name in options}


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
    """A floating dtype that layers compute in, or the name of one: `"bfloat16"`, `"torch.bfloat16"`."""
    named = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(named, torch.dtype) or not named.is_floating_point or named.itemsize < 2:
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


def check_kind(kind: type[PreTrainedConfig], config: PreTrainedConfig) -> None:
    """Refuse the config of a model of another kind, as an encoder's own."""
    if config.model_type != kind.model_type:
        refuse("config", type(config).__name__, f"a {kind.__name__}; from_backbone makes one of an encoder's")


def wanted_config(
    kind: type[PreTrainedConfig], source: PreTrainedConfig | str | os.PathLike, where: dict[str, Any],
    options: dict[str, Any],
) -> tuple[PreTrainedConfig, set[str], dict[str, Any]]:  # fmt: skip
    """The config to load with, the fields that `options` set in it, and what else is in `options`."""
    if isinstance(source, PreTrainedConfig):
        check_kind(kind, source)
        config, options = copy.deepcopy(source), either_way(options)
        fields = {"exit_policy", "num_labels", *kind.__dataclass_fields__}
        given = [name for name in options if name in fields]
        for name in given:
            setattr(config, name, options.pop(name))
        return config, set(given), options
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


def readable_format(field: str, value: Any) -> int:
    """A version this code can read."""
    if isinstance(value, int) and value > FORMAT_VERSION:
        refuse(field, value, f"at most {FORMAT_VERSION}: a newer modeling_pfberxit wrote this checkpoint, update yours")
    return whole(1)(field, value)
