"""Loading and saving: a model that travels without its encoder and finds it again."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .backbones import HAVE_POOLER
from .identity import share
from .persistence import (
    SHARED_OPTIONS,
    check_adapter_only,
    check_shared,
    load_backbone,
    record_hashes,
    verify_checkpoint,
)
from .validation import refuse

logger = logging.get_logger(__name__)


class CheckpointMixin:
    """`from_pretrained`, `save_pretrained` and `push_to_hub` for a `PreTrainedModel` with a `backbone` and `exits`."""

    @classmethod
    def from_backbone(cls, backbone: str | os.PathLike | PreTrainedConfig, **knobs: Any) -> CheckpointMixin:
        """A new model on a pretrained encoder; before training it is that encoder with untrained exits.

        Args:
            backbone: a Hub id, a folder, a `PFBerxitConfig` (its base is loaded), or another `transformers` config
                (random weights, no base to refer to).
            knobs: fields of the config, `revision` of the encoder, `dtype`, `attn_implementation`, and Hub options
                (`token`, `cache_dir`, `local_files_only`).
        """
        dtype, attention = knobs.pop("dtype", torch.float32), knobs.pop("attn_implementation", None)
        options = {name: knobs.pop(name) for name in SHARED_OPTIONS if name in knobs}
        config = cls.config_class.from_backbone(backbone, **knobs, **options)
        config._attn_implementation = attention
        model = cls(config).to(dtype)
        if config.base_model_name_or_path is None:
            return model.eval()
        wants_pooler = config.exit_pooler != "none" and model.backbone.config.model_type in HAVE_POOLER
        encoder = load_backbone(config, wants_pooler, dtype=dtype, **options)
        config.base_model_sha256 = encoder.identity.file_sha256
        check_pooler(config, encoder)
        if wants_pooler and not reads_backbone_pooler(config):
            model.exits.init_poolers(encoder)
            encoder.pooler = None
        return model.attach_backbone(encoder).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        backbone: nn.Module | None = None,
        **kwargs: Any,
    ):
        """Load a checkpoint; an adapter checkpoint fetches the encoder it is pinned to.

        Args:
            backbone: another model's `.backbone`, to be shared in memory instead of loaded.
            kwargs: as in `transformers`; config fields may stand among them (`exit_threshold=0.3`), and
                `base_model_name_or_path=` says where the encoder is if not where the config has it.

        Raises:
            OSError: a file is missing or damaged, or the encoder is not the one that was pinned.
        """
        where = ("revision", "subfolder", *SHARED_OPTIONS)
        options = {name: kwargs[name] for name in where if name in kwargs}
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            source = pretrained_model_name_or_path if config is None else config
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        if not kwargs.get("variant"):
            verify_checkpoint(pretrained_model_name_or_path, config, **options)
        kwargs = {**kwargs, **options, "config": config, "use_safetensors": True}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        model._complete(backbone, {name: options[name] for name in SHARED_OPTIONS if name in options})
        return loaded

    def _complete(self, backbone: PreTrainedModel | None, options: dict[str, Any]) -> None:
        """After the checkpoint's own weights: the encoder they refer to, and what is frozen (loading forgets it)."""
        if not self.config.adapter_only:
            self.backbone.requires_grad_(self.config.train_backbone)
            return
        if self.config.base_model_sha256 is None:
            logger.warning_once("The config has no base_model_sha256, so the encoder cannot be checked against it.")
        if backbone is not None:
            check_shared(self.config, backbone)
            self.attach_backbone(share(backbone))
        else:
            pooler = reads_backbone_pooler(self.config)
            self.attach_backbone(load_backbone(self.config, pooler, dtype=self.dtype, **options))
        identity = getattr(self.backbone, "identity", None)
        self.config.base_model_sha256 = identity and identity.file_sha256

    def attach_backbone(self, backbone: PreTrainedModel) -> CheckpointMixin:
        """Put a pretrained encoder in the placeholder's place, frozen unless the config trains it."""
        if reads_backbone_pooler(self.config):
            check_pooler(self.config, backbone)
        backbone.config._attn_implementation = self.config._attn_implementation
        self.backbone = backbone.to(self.device).requires_grad_(self.config.train_backbone).train(self.training)
        self._mark_backbone_keys()
        return self

    def _mark_backbone_keys(self) -> None:
        """Name the weights that checkpoints leave out; saving, Trainer's resume and best-model loading honour it."""
        keys = {f"backbone.{key}" for key in self.backbone.state_dict()} if self.config.adapter_only else set()
        self._keys_to_ignore_on_save = keys
        self._keys_to_ignore_on_load_missing = {r"^backbone\."} if self.config.adapter_only else set()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save adapters and exits (`config.adapter_only`) or the whole model, with the code and a hash of the weights.

        Raises:
            ValueError: the adapters alone could not be loaded again. Nothing is written then.
        """
        if self.config.adapter_only:
            check_adapter_only(self)
        self._mark_backbone_keys()
        hub = {
            name: kwargs.pop(name) for name in ("repo_id", "commit_message", "private", "create_pr") if name in kwargs
        }
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            self.config.weights_sha256 = record_hashes(save_directory)
            if push_to_hub:
                hub.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
                self.push_to_hub(token=kwargs.get("token"), **hub)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload code, config and weights as one commit; warns if the encoder is a folder of this machine."""
        base = self.config.base_model_name_or_path
        if self.config.adapter_only:
            check_adapter_only(self)  # before a repository is made
        if self.config.adapter_only and os.path.isdir(base):
            logger.warning(
                f"These adapters refer to the encoder in {base}, a folder of this machine. Whoever loads {repo_id} "
                "must say where theirs is: from_pretrained(..., base_model_name_or_path=<Hub id or folder>)."
            )
        return super().push_to_hub(repo_id, **kwargs)


def check_pooler(config: PreTrainedConfig, backbone: PreTrainedModel) -> None:
    """Refuse exits that want the encoder's pooler where its checkpoint has no weights for one."""
    if config.exit_pooler == "backbone" and getattr(backbone, "pooler", None) is None:
        kind = backbone.config.model_type
        refuse("exit_pooler", "backbone", f"'none' or 'own': this {kind} checkpoint has no pooler weights")


def reads_backbone_pooler(config: PreTrainedConfig) -> bool:
    """Whether the exits use the encoder's own pooler, untrained unless the encoder is."""
    return config.exit_pooler == "backbone" and not config.train_pooler
