"""`PFBerxitConfig`: every knob, its symbol, default and check. What a knob does is in the file that reads it."""

import os
from dataclasses import asdict, fields, make_dataclass
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .adapters import ACTIVATIONS, PLACEMENTS, SUBLEARNERS
from .backbones import EncoderFields, architecture, check_supported, global_layers, num_depths
from .evidence import DIVERGENCE_ALIASES, DIVERGENCES, MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, PolicyFields
from .exit_policy import POLICY_CHECKS, ExitPolicy, configured_policy, requested_policy
from .heads import LAST_EXITS, POOLERS, POOLINGS
from .load_options import AUTO_MAP, FORMAT_VERSION, SHARED_OPTIONS, floating_dtype, readable_format
from .persistence import carry_code, check_place, code_of_one_version
from .positions import GENERATORS
from .sources import pretrained_encoder
from .strategies import EXIT_WEIGHTS, STRATEGIES
from .systems import SYSTEMS, system_values
from .validation import (
    Check,
    above_zero,
    each,
    either_way,
    entry_of,
    flag,
    increasing,
    layer_range,
    layers_or_global,
    mapping,
    names_by_id,
    names_by_number,
    no_misspelling,
    one_of,
    optional,
    real,
    refuse,
    text,
    whole,
)

CHECKS: dict[str, Check] = {
    "format_version": readable_format,
    "backbone_config": optional(mapping),
    "base_model_name_or_path": optional(text),
    "base_model_revision": optional(text),
    "base_model_sha256": optional(text),
    "train_backbone": flag,
    "train_pooler": flag,
    "adapter_only": optional(flag),
    "adapter_sublearner": entry_of(SUBLEARNERS),
    "adapter_placement": entry_of(PLACEMENTS),
    "adapter_activation": entry_of(ACTIVATIONS),
    "adapter_dim": whole(1),
    "adapter_layer_norm": one_of("in", "out", "none"),
    "adapter_scaling": real(0.0),
    "adapter_dropout": real(0.0, 1.0),
    "adapter_conv_kernel": whole(1),
    "adapter_num_heads": whole(1),
    "exit_layers": optional(layers_or_global),
    "exit_pooling": entry_of(POOLINGS),
    "exit_pooler": entry_of(POOLERS),
    "exit_pooler_dim": optional(whole(1)),
    "last_exit": one_of(*LAST_EXITS),
    "exit_shared": flag,
    "exit_dropout": real(0.0, 1.0),
    "use_lte": flag,
    "lte_shared": flag,
    "use_prototypes": flag,
    "prototype_weight": real(0.0),
    "use_nsp": flag,
    "training_strategy": entry_of(STRATEGIES),
    "training_stage": whole(1, 2),
    "exit_weights": entry_of(EXIT_WEIGHTS),
    "exit_groups": optional(each(increasing)),
    "gradient_equilibrium": flag,
    "distillation": real(0.0, 1.0),
    "distillation_temperature": above_zero,
    "distillation_divergence": entry_of(DIVERGENCES, DIVERGENCE_ALIASES),
    "label_smoothing": real(0.0, 1.0),
    "class_weights": optional(each(real(0.0))),
    "pos_weight": optional(each(real(0.0))),
    "token_exits": flag,
    "token_exit_range": optional(layer_range),
    "token_exit_seed": whole(0),
    "prompt_generator": entry_of(GENERATORS),
    "prompt_layer": whole(0),
    "prompt_length": whole(1),
    "prompt_dim": whole(1),
    "system": optional(entry_of(SYSTEMS)),
    "dtype": lambda field, value: None if value in (None, "auto") else floating_dtype(field, value),
    "problem_type": optional(one_of(SINGLE_LABEL, MULTI_LABEL, REGRESSION)),
    "num_labels": whole(1),
    "id2label": optional(names_by_number),
    "operating_points": lambda field, value: {} if value is None else mapping(field, value),
    **{f"exit_{name}": check for name, check in POLICY_CHECKS.items()},
}

# The policy's fields and defaults, with "exit_" in front.
ExitFields = make_dataclass(
    "ExitFields", [(f"exit_{field.name}", field.type, field.default) for field in fields(PolicyFields)], kw_only=True
)


class PFBerxitConfig(EncoderFields, ExitFields, PreTrainedConfig):  # type: ignore[misc, valid-type]  # made above
    """The configuration of a [`PFBerxitForSequenceClassification`]. Values are checked when they are assigned.

    Args:
        backbone_config (`dict`): architecture of the encoder (L_1 ... L_n), as in its own config.json.
        base_model_name_or_path (`str`): where the pretrained encoder comes from, a Hub id or a folder.
        base_model_revision (`str`): its commit on the Hub.
        base_model_sha256 (`str`): hash of its weights file. Load with None to accept another serialisation of it.
        train_backbone (`bool`): train all weights; False freezes the encoder (the paper's setting).
        train_pooler (`bool`): with `exit_pooler="backbone"`, train a copy of the encoder's pooler.
        adapter_only (`bool`): checkpoints hold adapters and exits and refer to the encoder. Default: wherever there
            is one to refer to and it is not trained. Assign False to get self-contained checkpoints.
        adapter_sublearner (`str`): f of eq. 1: `identity`, `self_attention`, `conv` or `mlp`.
        adapter_placement (`str`): `ffn` (parallel to it; the paper's choice), `attention` (parallel), `both`,
            `sequential` (between attention and its norm), `bypass` (feeds only the exit: BADGE) or `none`.
        adapter_activation (`str`): g of eq. 1.
        adapter_dim (`int`): r, the bottleneck.
        adapter_layer_norm (`str`): `in` (in front), `out` or `none`. Eq. 1 shows none; the paper's counts have one.
        adapter_scaling, adapter_dropout (`float`): factor on the adapter's output, and dropout.
        adapter_conv_kernel (`int`): 3: depth-wise, then point-wise, with the receptive field the paper speaks of. 1:
            point-wise, with bias and norm. Both have the paper's parameter count.
        adapter_num_heads (`int`): heads of the self-attention sub-learner.
        exit_layers (`list[int]`): layers (1-based) that get an exit C_i, and the last one; None: all; `global`: those
            of ModernBERT that see the whole row.
        exit_pooling (`str`): what an exit reads, the `mean` over the tokens, `cls`, the first, or `both`. By default
            the mean: below a frozen encoder's last layers the first token has not gathered the sentence yet, and exits
            on it stay at the majority class (docs/results.md, "Choosing what an exit reads").
        exit_pooler (`str`): in front of the linear layer: `none`; dense + tanh, `backbone` (the encoder's own, one for
            all exits, as the paper counts it) or `own` (one per exit); `bottleneck`, norm, few units and GELU; or what
            the family's own `classifier` has.
        exit_pooler_dim (`int`): units of the bottleneck; None: 128.
        last_exit (`str`): `alike`, as the others, or `classifier`: the head of the fine-tuned classifier that is the
            base (`from_classifier`). It is read from there and stays as it is, unless the encoder is trained.
        exit_shared (`bool`): one head for all depths.
        exit_dropout (`float`): in front of the classifiers.
        use_lte (`bool`): learning-to-exit heads (BERxiT).
        lte_shared (`bool`): one for all depths, as BERxiT has it; False: one per exit, as the paper counts them.
        exit_criterion, exit_divergence, exit_threshold (tau), exit_patience (t) ...: the default [`ExitPolicy`], where
            they are explained. Without a threshold the default criterion is off: a new model runs to its last layer.
        use_prototypes (`bool`): class prototypes at every exit (DE3-BERT).
        prototype_weight (`float`): alpha, what their loss weighs beside an exit's own.
        use_nsp (`bool`): exits emit how much of what they read no class sees, for `cap`. It has no weights.
        training_strategy (`str`): `joint` (all exits at every step), `two_stage` (two runs: the last exit, then, with
            `training_stage=2`, the others on the then frozen encoder) or `alternating` (last exit and all, in turns).
        training_stage (`int`): of `two_stage`, 1 or 2.
        exit_weights (`str`): what the exits' losses weigh: `depth` (i / sum of i), `uniform`, `learned` (ELBERT),
            `rising` in the course of the run (Shallow-Deep) or `leaving`: each row's most where it would leave (COSEE).
        exit_groups (`list[list[int]]`): layers whose exits learn in turns, one group per optimiser step (ElasticBERT),
            in place of the groups that `training_strategy` implies.
        gradient_equilibrium (`bool`): a depth receives the mean, not the sum, of later exits' gradients (ElasticBERT).
        distillation (`float`): g: inner exits learn (1 - g) from the labels and g from the last exit.
        distillation_temperature (`float`): T, softens both sides.
        distillation_divergence (`str`): `rekl_div` puts the teacher first (RomeBERT), `kl_div` the student (FastBERT).
        label_smoothing (`float`): in every exit's loss. (`TrainingArguments.label_smoothing_factor` takes the labels
            away for a loss of the last exit alone, and is refused.)
        class_weights (`list[float]`): one for each class, in every exit's loss: torch's `cross_entropy(weight=)`.
        pos_weight (`list[float]`): one for each of several labels, what having it weighs: torch's
            `binary_cross_entropy_with_logits(pos_weight=)`. Any other loss is `model.exit_loss`.
        token_exits (`bool`): tokens leave on their own, at the layer a table over the vocabulary says (HashEE).
        token_exit_range (`list[int]`): lowest and highest layer for tokens that draw theirs; None: 1 to the last.
        token_exit_seed (`int`): of the draw.
        prompt_generator (`str`): prompts join the tokens half-way up (Late Prompt Tuning): `none`, a `table`, or made
            of the states they join: from the first token (`npg`), or of all by largest (`mppg`) or mean value (`appg`).
        prompt_layer (`int`): k: they join before layer k + 1. Nothing below needs gradients.
        prompt_length (`int`): how many.
        prompt_dim (`int`): m, the generator's bottleneck.
        system (`str`): the published system these values are, if any; `for_system` writes it.
        operating_points (`dict[str, dict]`): named exit policies, each with its measured score and cost.
        format_version (`int`): of the checkpoint.
    """

    model_type = "pfberxit"
    # `Trainer.predict` then returns plain (N, C) logits; `ignore_keys=[]` brings the rest back.
    keys_to_ignore_at_inference = [
        "exit_layer", *(f"exit_{part}" for part in Evidence._fields), "token_layers", "hidden_states", "attentions",
    ]  # fmt: skip

    backbone_config: dict | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_model_sha256: str | None = None
    train_backbone: bool = False
    train_pooler: bool = False
    adapter_only: bool | None = None
    adapter_sublearner: str = "mlp"
    adapter_placement: str = "ffn"
    adapter_activation: str = "relu"
    adapter_dim: int = 32
    adapter_layer_norm: str = "in"
    adapter_scaling: float = 1.0
    adapter_dropout: float = 0.0
    adapter_conv_kernel: int = 3
    adapter_num_heads: int = 4
    exit_layers: list[int] | str | None = None
    exit_pooling: str = "mean"
    exit_pooler: str = "none"
    exit_pooler_dim: int | None = None
    last_exit: str = "alike"
    exit_shared: bool = False
    exit_dropout: float = 0.1
    use_lte: bool = False
    lte_shared: bool = True
    use_prototypes: bool = False
    prototype_weight: float = 0.1
    use_nsp: bool = False
    training_strategy: str = "joint"
    training_stage: int = 1
    exit_weights: str = "depth"
    exit_groups: list[list[int]] | None = None
    gradient_equilibrium: bool = False
    distillation: float = 0.0
    distillation_temperature: float = 1.0
    distillation_divergence: str = "rekl_div"
    label_smoothing: float = 0.0
    class_weights: list[float] | None = None
    pos_weight: list[float] | None = None
    token_exits: bool = False
    token_exit_range: list[int] | None = None
    token_exit_seed: int = 0
    prompt_generator: str = "none"
    prompt_layer: int = 0
    prompt_length: int = 10
    prompt_dim: int = 128
    system: str | None = None
    operating_points: dict | None = None
    format_version: int = FORMAT_VERSION
    weights_sha256: dict | None = None  # of the checkpoint's own files; written by `save_pretrained`
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.adapter_only is None:
            self.adapter_only = not self.train_backbone and self.base_model_name_or_path is not None
        self.take_back(kwargs)
        self.id2label = names_by_id(self, kwargs)
        kwargs["auto_map"] = {**(kwargs.get("auto_map") or {}), **AUTO_MAP}  # an older checkpoint's may be another
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "base_model_name_or_path" and value != self.__dict__.get(name, value):
            # Another place: the commit was of the old one, and only the hash still says which encoder it must be.
            self.base_model_revision = None
            value = os.path.abspath(value) if isinstance(value, (str, os.PathLike)) and os.path.isdir(value) else value
        if not (name.startswith("_") or name in self.__dataclass_fields__ or hasattr(type(self), name)):
            if (field := self._encoder_fields().get(name)) is not None:
                name, value = "backbone_config", {**(self.backbone_config or {}), field: value}
            else:
                no_misspelling(name, CHECKS, POLICY_CHECKS)
        super().__setattr__(name, CHECKS[name](name, value) if name in CHECKS else value)

    @property
    def exit_policy(self) -> ExitPolicy:
        """The `exit_*` fields as one. May be set to whatever a call takes; so may a keyword at load.

        Example:
            >>> AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=True, exit_policy="fast")
        """
        return configured_policy(self)

    @exit_policy.setter
    def exit_policy(self, request: Any) -> None:
        for name, value in asdict(requested_policy(request, self)).items():
            setattr(self, f"exit_{name}", value)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in `transformers`, with all the code a model of this config runs, not this file's part of it alone."""
        check_place(self, save_directory)
        with code_of_one_version(save_directory):
            super().save_pretrained(save_directory)
            if self._auto_class is not None:
                carry_code(save_directory)
        if push_to_hub:
            self.push_to_hub(**{"repo_id": os.path.basename(os.path.normpath(save_directory)), **kwargs})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Like `PreTrainedConfig.from_dict`, which would drop a misspelt keyword."""
        known = {*cls.__dataclass_fields__, *dir(cls), "adapter_kwargs", "adapter_name"}
        for name in kwargs.keys() - known:
            no_misspelling(name, CHECKS, POLICY_CHECKS)
        return super().from_dict(config_dict, **either_way(kwargs))

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike | PreTrainedConfig, *, revision: str | None = None, **knobs: Any
    ) -> "PFBerxitConfig":
        """The configuration for an encoder, or another `PFBerxitConfig` with some values changed.

        The encoder is a Hub id, a folder, or its `transformers` config (no base to refer to). A Hub id is pinned to the
        commit that `revision` names today. Knobs may include Hub options (`token`, `cache_dir`, `local_files_only`),
        `system` for all the values of a published system, and `exit_policy` for the `exit_*` fields, as at a load.
        """
        system = CHECKS["system"]("system", knobs.get("system"))
        if (policy := knobs.pop("exit_policy", None)) is not None:
            config = cls.from_backbone(backbone, revision=revision, **knobs)
            config.exit_policy = policy
            return config
        hub = {name: knobs.pop(name) for name in SHARED_OPTIONS if name in knobs}
        if unknown := knobs.keys() - {field.name for field in fields(cls)} - {"num_labels"}:
            refuse("knobs", sorted(unknown), "fields of PFBerxitConfig")
        base: dict[str, Any] = {}
        if not isinstance(backbone, PreTrainedConfig):
            backbone, base = pretrained_encoder(backbone, revision, **hub)
        elif revision is not None:
            refuse("revision", revision, "left out with a config object: it names no repository")
        elif backbone.model_type == cls.model_type:
            return cls._changed(backbone, knobs)
        check_supported(backbone)
        base |= {"backbone_config": architecture(backbone), "pad_token_id": backbone.pad_token_id}
        layers = num_depths(backbone)
        config = cls(**{**base, **system_values(system, layers), **knobs})
        if config.token_exit_range and config.token_exit_range[1] > layers:
            refuse("token_exit_range", config.token_exit_range, f"two layers of this backbone, 1 to {layers}")
        return config

    @classmethod
    def _changed(cls, config: PreTrainedConfig, knobs: dict[str, Any]) -> "PFBerxitConfig":
        """Another config of this kind with some values changed, on the same encoder."""
        published = system_values(knobs.get("system"), num_depths(config.encoder_config()))
        changes = {"operating_points": {}, **published, **knobs}  # those were measured on another model's exits
        if {"train_backbone", "base_model_name_or_path"} & changes.keys():
            changes.setdefault("adapter_only", None)  # what it is by default depends on these
        return cls.from_dict({**config.to_diff_dict(), **changes})

    @classmethod
    def for_system(cls, system: str, backbone: str | os.PathLike | PreTrainedConfig, **knobs: Any) -> "PFBerxitConfig":
        """The configuration of a published system on an encoder; `knobs` change what the system says.

        Raises:
            ValueError: an unknown system; the message lists all of them.
        """
        return cls.from_backbone(backbone, **{**knobs, "system": system})

    def encoder_config(self) -> PreTrainedConfig:
        """The encoder's own `transformers` config."""
        if not self.backbone_config or "model_type" not in self.backbone_config:
            refuse("backbone_config", self.backbone_config, "an encoder's config; use PFBerxitConfig.from_backbone")
        spec = dict(self.backbone_config)
        return AutoConfig.for_model(spec.pop("model_type"), **spec)

    def exit_depths(self, num_layers: int) -> list[int]:
        """The layers that have an exit, 1-based, the last one included."""
        given = self.exit_layers or list(range(1, num_layers + 1))
        depths = global_layers(self.encoder_config()) if isinstance(given, str) else given
        if depths[-1] > num_layers:
            refuse("exit_layers", depths, f"layers of this backbone, 1 to {num_layers}")
        return depths if depths[-1] == num_layers else [*depths, num_layers]
