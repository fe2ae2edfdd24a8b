"""`PFBerxitPreTrainedModel`: the parts all models are made of, and loading and saving them without their encoder.

What a call does with the parts is in `modeling_pfberxit` and `loop`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .adapters import init_adapter_weights
from .backbones import (
    build_backbone,
    cast,
    check_pooler,
    check_supported,
    embed,
    num_depths,
    reads_backbone_pooler,
    rotated_positions,
    set_attention,
)
from .base_encoder import check_base, check_given, check_saveable, check_shared, check_sharing, load_backbone, load_head
from .blueprint import blueprint, check_carried_over, check_state_dict, drop_measured, keep_exits, loadable, rebuilt
from .configuration_pfberxit import PFBerxitConfig
from .execution import Execution
from .exits import Exits, init_exit_weights
from .families import family_of
from .identity import note_certified, share
from .layers import AdaptedLayer
from .load_options import (
    PUSH_OPTIONS,
    SHARED_OPTIONS,
    check_kind,
    check_load_options,
    check_save_options,
    shared_options,
    take_device,
    take_dtype,
    wanted_config,
)
from .persistence import code_of_one_version, only_new_weights, record_hashes, verify_checkpoint
from .positions import GENERATORS, TokenExits, check_reach, init_token_exits, resize
from .rows import Rows
from .sources import check_pretrained_name, commit_of, read_checkpoint
from .trainable import in_use
from .validation import refuse

logger = logging.get_logger(__name__)


class PFBerxitPreTrainedModel(PreTrainedModel):
    """The parts of a model, under the same names in checkpoints of the classifier and of the headless model."""

    config_class = PFBerxitConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["AdaptedLayer"]  # and the encoder's own
    execution = Execution()  # which short cuts the loop takes; answers are the same without them

    def __init__(self, config: PFBerxitConfig) -> None:
        check_kind(self.config_class, config)
        super().__init__(config)
        check_supported(encoder := config.encoder_config())
        check_base(config)
        layers, size = num_depths(encoder), encoder.hidden_size
        self.exit_depths = config.exit_depths(layers)
        self.backbone = build_backbone(encoder, reads_backbone_pooler(config), config._attn_implementation)
        self.depths = nn.ModuleList(AdaptedLayer(config, size) for _ in range(layers))
        self.exits = self._new_exits(size)
        generator = GENERATORS[config.prompt_generator]
        self.prompts = None if generator is None else generator(config, size, layers)
        self.token_exits = TokenExits(config, encoder.vocab_size, layers) if config.token_exits else None
        if config.token_exits:
            check_reach(self.depths, self.exits)
        if config.adapter_only:  # a placeholder until `attach_backbone`
            for module in self.backbone.modules():
                module._is_hf_initialized = True
        self.post_init()
        self._mark_backbone_keys()
        self._freeze()
        self.built_from = blueprint(config)

    def _new_exits(self, hidden_size: int) -> Exits | None:
        """The heads, or None for a model without."""
        return None

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        for initialise in (init_adapter_weights, init_exit_weights, init_token_exits):
            initialise(module)

    def get_input_embeddings(self) -> nn.Embedding:
        """The encoder's embeddings of tokens."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put other embeddings in their place."""
        self.backbone.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in `transformers`; the table of token depths grows or shrinks with the vocabulary."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.token_exits is not None:
            resize(self.token_exits, embeddings.num_embeddings)
        rebuilt(self, backbone_config=self.config.backbone_config)
        return embeddings

    def print_trainable_parameters(self) -> None:
        """Print how many parameters are trained, of how many."""
        total, trained = self.num_parameters(), self.num_parameters(only_trainable=True)
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")  # noqa: T201, PEFT's line

    # ---- what a call is given ---------------------------------------------------------------------------------------

    def _wanted(self, hidden_states: bool | None, attentions: bool | None) -> tuple[bool, bool]:
        """Whether a call returns them: its own argument, or else the config's."""
        states = self.config.output_hidden_states if hidden_states is None else hidden_states
        weights = self.config.output_attentions if attentions is None else attentions
        return states, weights

    def _check_inputs(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, want_attentions: bool) -> Tensor:
        """The one that is given; refuse what this model cannot read or cannot show."""
        if (input_ids is None) == (inputs_embeds is None):
            refuse("input_ids", None if input_ids is None else "...", "given, or inputs_embeds: exactly one of them")
        for name, given in (("input_ids", input_ids), ("inputs_embeds", inputs_embeds)):
            if given is not None and not isinstance(given, Tensor):
                refuse(name, type(given).__name__, "a tensor: model(**tokenizer(texts, return_tensors='pt'))")
        if want_attentions and self.config._attn_implementation != "eager":
            refuse("output_attentions", True, "False unless the model was loaded with attn_implementation='eager'")
        if self.token_exits is not None and (want_attentions or input_ids is None):
            name = "output_attentions" if want_attentions else "inputs_embeds"
            refuse(name, "...", "left out: with token_exits, input_ids say which tokens still query")
        return inputs_embeds if input_ids is None else input_ids

    def embedded(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
    ) -> tuple[Rows, Tensor | None]:  # fmt: skip
        """The rows of a call in front of the first layer, and where tokens leave on their own, after which (B, n)."""
        hidden_states = embed(self.backbone, input_ids, token_type_ids, position_ids, inputs_embeds)
        token_layers = None if self.token_exits is None else self.token_exits(input_ids, attention_mask)
        positions = rotated_positions(self.backbone, position_ids, hidden_states, self.prompts is not None)
        return Rows.start(self.backbone, hidden_states, attention_mask, token_layers, positions), token_layers

    # ---- loading and saving ----------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(cls, backbone: str | os.PathLike | PreTrainedConfig, **knobs: Any) -> PFBerxitPreTrainedModel:
        """A new model on a pretrained encoder; before training it is that encoder with untrained exits.

        Args:
            backbone: a Hub id, a folder, a `PFBerxitConfig` (its base is loaded), or another `transformers` config
                (random weights, no base to refer to).
            knobs: fields of the config, `revision` of the encoder, `dtype` (default: float32; "auto" takes the
                encoder's own), `device_map` (one device), `attn_implementation`, and Hub options (`token`,
                `cache_dir`, `local_files_only`, `force_download`, `proxies`).

        Raises:
            OSError: there is no such encoder, or it is not the one that was pinned.
            ValueError: it is of another kind, or a knob or its value is unknown.
        """
        dtype, device = take_dtype(knobs, default=torch.float32), take_device(knobs)
        attention = knobs.pop("attn_implementation", None)
        options = {name: knobs.pop(name) for name in SHARED_OPTIONS if name in knobs}
        config = cls.config_class.from_backbone(backbone, **knobs, **options)
        config._attn_implementation = attention
        check_base(config)
        if config.base_model_name_or_path is None:
            model = cast(cls(config), torch.float32 if dtype == "auto" else dtype)
        else:
            model = cls._on_base(config, dtype, options)
        config.dtype = model.dtype
        return model.to(device).eval()

    @classmethod
    def _on_base(cls, config: PFBerxitConfig, dtype: torch.dtype | str, options: dict[str, Any]) -> Any:
        """A new model on the encoder its config refers to."""
        has_one = family_of(config.encoder_config()).pooler is not None
        wants_pooler = has_one and config.exit_pooler in ("backbone", "own")
        encoder = load_backbone(config, wants_pooler, dtype=dtype, **options)
        check_pooler(config, encoder)
        config.base_model_sha256 = encoder.identity.file_sha256
        model = cast(cls(config), encoder.dtype)
        if wants_pooler and not reads_backbone_pooler(config):
            if model.exits is not None:
                model.exits.init_poolers(encoder)
            encoder.pooler = None
        model.attach_backbone(encoder)
        load_head(model, checked=True, **options)
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        backbone: nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; an adapter checkpoint fetches the encoder it is pinned to.

        Args:
            config: another config than the checkpoint's own.
            backbone: another model's `.backbone`, whose weights are shared in memory instead of loaded.
            kwargs: as in `transformers`; config fields are allowed among them (`exit_threshold=0.3`), and
                `base_model_name_or_path=` says where the encoder is if not where the config has it. `exit_layers=`
                keeps the exits after these layers.

        Raises:
            OSError: a file is missing or damaged, or the encoder is not the one that was pinned.
            ValueError: it is a checkpoint of another kind, or its weights do not fit the options.
        """
        name = pretrained_model_name_or_path
        check_load_options(kwargs)
        dtype, device = take_dtype(kwargs, default="auto"), take_device(kwargs)
        where = {each: kwargs.pop(each) for each in ("revision", "subfolder", *SHARED_OPTIONS) if each in kwargs}
        check_pretrained_name("pretrained_model_name_or_path", name)
        if commit := commit_of(name, **{"revision": None, **where}):
            where["revision"] = commit  # all files come from one
        stored = cls.config_class.from_dict(read_checkpoint("pretrained_model_name_or_path", name, **where))
        wanted, given, kwargs = wanted_config(cls.config_class, name if config is None else config, where, kwargs)
        cls._check_wanted(stored, wanted)
        check_sharing(stored, wanted, backbone)
        verify_checkpoint(name, wanted.weights_sha256 and stored.weights_sha256, **where)
        drop_measured(stored, wanted, given)

        kwargs |= {**where, "config": loadable(stored, wanted), "use_safetensors": True}
        if backbone is not None:  # the adapters go where the encoder is
            dtype, device = backbone.dtype if dtype == "auto" else dtype, device or backbone.device
        device_map = None if device is None else {"": device}
        loaded = super().from_pretrained(name, *args, dtype=dtype, device_map=device_map, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        model._complete(wanted, backbone, shared_options(where))
        return loaded

    @classmethod
    def _check_wanted(cls, stored: PreTrainedConfig, wanted: PreTrainedConfig) -> None:
        """Refuse a config that the checkpoint's weights do not fit."""
        check_carried_over(stored, wanted)

    def _complete(self, wanted: PreTrainedConfig, backbone: PreTrainedModel | None, options: dict[str, Any]) -> None:
        """After the checkpoint's own weights: its encoder, the exits that were asked for, and what is frozen."""
        if self.config.adapter_only:
            self._load_base(backbone, options)
        keep_exits(self, wanted)
        self.config.adapter_only = wanted.adapter_only
        self._mark_backbone_keys()
        self._freeze()  # loading forgets it
        note_certified(self)

    def _load_base(self, backbone: PreTrainedModel | None, options: dict[str, Any]) -> None:
        """The encoder an adapter checkpoint refers to, loaded or shared, and the head it may have for the last exit."""
        if getattr(self, "_hf_peft_config_loaded", False):
            refuse("adapter_config.json", "...", "loaded with peft.PeftModel.from_pretrained(model, folder): the "
                   "encoder of this checkpoint comes after its own weights")  # fmt: skip
        if self.config.base_model_sha256 is None:
            logger.warning_once("The config has no base_model_sha256, so the encoder cannot be checked against it.")
        if backbone is not None:
            check_shared(self.config, backbone)
            encoder = cast(share(backbone), self.dtype)
        else:
            encoder = load_backbone(self.config, reads_backbone_pooler(self.config), dtype=self.dtype, **options)
        identity = getattr(self.attach_backbone(encoder).backbone, "identity", None)
        self.config.base_model_sha256 = None if identity is None else identity.file_sha256
        load_head(self, checked=backbone is None, **options)

    def attach_backbone(self, backbone: PreTrainedModel) -> PFBerxitPreTrainedModel:
        """Put a pretrained encoder in the placeholder's place, frozen unless the config trains it."""
        if reads_backbone_pooler(self.config):
            check_pooler(self.config, backbone)
        set_attention(backbone.config, self.config._attn_implementation)
        self.backbone = backbone.to(self.device).requires_grad_(self.config.train_backbone).train(self.training)
        self._mark_backbone_keys()
        return self

    def _mark_backbone_keys(self) -> None:
        """Name the weights that checkpoints leave out; saving, Trainer's resume and best-model loading honour it."""
        keys = {f"backbone.{key}" for key in self.backbone.state_dict()} if self.config.adapter_only else set()
        if keys and self.exits is not None:
            keys |= {f"exits.{name}" for name in self.exits.kept_weights().values()}
        self._keys_to_ignore_on_save = keys
        self._keys_to_ignore_on_load_missing = {r"^backbone\.", *map(re.escape, keys)} if keys else set()

    def _freeze(self) -> None:
        """Let the encoder, and a last exit that is a classifier's own head, learn only if the config says so."""
        self.backbone.requires_grad_(self.config.train_backbone)
        if (exits := self.exits) is not None:
            for name in exits.kept_weights().values():
                exits.get_parameter(name).requires_grad_(self.config.train_backbone)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in `torch`; parts of another model are refused also where `strict=False` would pass over them."""
        if not strict and not in_use(self):  # PEFT brings layers of its own
            check_state_dict(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, state_dict: dict | None = None,
        push_to_hub: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Save adapters and exits (`config.adapter_only`) or the whole model, with the code and a hash of the weights.

        Raises:
            ValueError: the adapters alone could not be loaded again. Nothing is written then.
        """
        check_save_options(kwargs, push_to_hub)
        self._check_saveable(save_directory)
        state_dict = None if state_dict is None else check_given(self, state_dict)
        hub = {name: kwargs.pop(name) for name in PUSH_OPTIONS if name in kwargs}
        one_version = code_of_one_version(save_directory) if is_main_process else nullcontext()
        with only_new_weights(save_directory), one_version:
            super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            record_hashes(self.config, save_directory)
            if push_to_hub:
                hub.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
                hub |= {name: kwargs[name] for name in ("token", "max_shard_size") if name in kwargs}
                self.push_to_hub(**hub)

    def _check_saveable(self, folder: str | os.PathLike | None = None) -> None:
        """Refuse to write what would not be this model when it is loaded, or over the encoder it refers to."""
        check_saveable(self, folder)
        self._mark_backbone_keys()
        if self.config.adapter_only and self.state_dict().keys() <= self._keys_to_ignore_on_save:
            refuse(
                "adapter_only", True, "False: beside its encoder and that one's head this model has no weights to save"
            )

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload code, config and weights as one commit; warns if the encoder is a folder of this machine."""
        base = self.config.base_model_name_or_path
        self._check_saveable()  # before a repository is made
        if self.config.adapter_only and os.path.isdir(base):
            logger.warning(
                f"These adapters refer to the encoder in {base}, a folder of this machine. Whoever loads {repo_id} "
                "must say where theirs is: from_pretrained(..., base_model_name_or_path=<Hub id or folder>)."
            )
        return super().push_to_hub(repo_id, **kwargs)
