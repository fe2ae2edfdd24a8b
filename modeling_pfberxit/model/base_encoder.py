"""The encoder that an adapter checkpoint refers to: found, held against its hash, and whether it could be found again.

The config names it, pinned by commit (Hub) and by the hash of its weights file. The order of the checks at a load or
save is in `checkpoints`, what an encoder's bytes are in `identity`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from .backbones import pooler_option, shape_of
from .blueprint import check_blueprint
from .exits import Exits
from .families import family_of
from .identity import changes, difference, identity_of, is_shared, tensors_of, warn_of_training
from .load_options import shared_options
from .persistence import check_place, read_tensors, sha256_of, weight_files
from .sources import read_encoder
from .trainable import check_without_peft, in_use, own_parameters
from .validation import refuse

logger = hf_logging.get_logger(__name__)


# ---- loading ---------------------------------------------------------------------------------------------------------


class WrongEncoder(OSError):
    """The encoder was found, but its weights are not the ones the adapters were trained on."""


def load_backbone(config: PreTrainedConfig, with_pooler: bool, **options: Any) -> PreTrainedModel:
    """The pretrained encoder the config refers to, checked against it.

    Where its checkpoint has no weights for the pooler, it comes without one.

    Raises:
        OSError: it cannot be found, or its weights are not the ones the adapters were trained on.
        ValueError: it is of another shape.
    """
    shown = f"base_model_name_or_path={config.base_model_name_or_path!r}"
    try:
        weights_sha256 = check_base_files(config, **shared_options(options))
        backbone, missing = read_backbone(config, with_pooler, **options)
    except WrongEncoder:
        raise
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        if not reason.startswith(shown):
            reason = f"{shown}: this encoder could not be loaded ({reason})"
        raise OSError(f"{reason} Load with base_model_name_or_path=<Hub id or folder> to say where it is.") from error
    if lacking := sorted(key for key in missing if not key.startswith("pooler.")):
        raise OSError(f"{shown}: its checkpoint lacks {lacking[:3]} ...")
    if with_pooler and missing:
        backbone.pooler = None
    backbone.identity = identity_of(tensors_of(backbone), weights_sha256)
    return backbone


def check_base_files(config: PreTrainedConfig, **options: Any) -> str | None:
    """The hash of the weights of the encoder a config refers to; refuses one of another kind, shape or hash."""
    name, revision = config.base_model_name_or_path, config.base_model_revision
    read_encoder("base_model_name_or_path", name, revision=revision, **options)
    found = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False, **options)
    check_same_shape(config.encoder_config(), found, name)
    return check_pinned(config, **options)


def check_pinned(config: PreTrainedConfig, **options: Any) -> str | None:
    """The hash of the encoder's weights, compared with the config's before they are read."""
    name, expected = config.base_model_name_or_path, config.base_model_sha256
    files = weight_files(name, revision=config.base_model_revision, **options)
    actual = sha256_of(*files) if files else None
    if expected and actual and actual != expected:
        raise WrongEncoder(
            f"base_model_name_or_path={name!r}: the sha256 of its weights is {actual}, but these adapters were trained "
            f"on {expected}. Load with base_model_sha256=None if it is the same encoder in another serialisation."
        )
    return actual


def check_same_shape(expected: PreTrainedConfig, found: PreTrainedConfig, name: str) -> None:
    """Refuse an encoder whose shape is not the one the adapters were trained on."""
    has = shape_of(found)
    for field, value in shape_of(expected).items():
        if has.get(field) != value:
            raise ValueError(
                f"base_model_name_or_path={name!r} has {field}={has.get(field)!r}, but these adapters "
                f"were trained on {field}={value!r}."
            )


def read_backbone(config: PreTrainedConfig, with_pooler: bool, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """The encoder a config refers to, and the names of weights that its checkpoint lacks."""
    encoder = config.encoder_config()
    with without_load_report():
        backbone, info = AutoModel.from_pretrained(
            config.base_model_name_or_path,
            config=encoder,
            revision=config.base_model_revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **pooler_option(encoder, with_pooler),
            **options,
        )
    return backbone, set(info["missing_keys"])


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep `transformers` from listing an encoder's old heads as unexpected: that they go unused is the point."""

    def quiet(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    target = logging.getLogger("transformers.modeling_utils")
    target.addFilter(quiet)
    try:
        yield
    finally:
        target.removeFilter(quiet)


@torch.no_grad()
def load_head(model: PreTrainedModel, checked: bool, **options: Any) -> None:
    """Read the head of the classifier that is the model's base into its last exit, where that is what it has.

    Args:
        checked: the base's file was held against its hash already; not where the encoder was handed over in memory.

    Raises:
        OSError: the base has no such head.
    """
    config, exits = model.config, model.exits
    if exits is None or not (kept := exits.kept_weights()):
        return
    name = config.base_model_name_or_path
    if not checked:
        check_pinned(config, **options)
    files = weight_files(name, revision=config.base_model_revision, **options)
    found = head_in(files, kept, model.backbone)
    weights = {stock: exits.get_parameter(own) for stock, own in kept.items()}
    for stock, weight in weights.items():
        if stock not in found:
            raise OSError(f"base_model_name_or_path={name!r}: its checkpoint has no {stock}, so it is no classifier.")
        if (shape := tuple(found[stock].shape)) != tuple(weight.shape):
            wanted = tuple(weight.shape)
            raise ValueError(f"num_labels={config.num_labels}: the classifier's {stock} is {shape}, not {wanted}")
        weight.copy_(found[stock])
    exits.identity = identity_of(weights, config.base_model_sha256)


def head_in(files: list[str], names: Iterable[str], backbone: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Those of a classifier's weights, by the names `transformers` has for them, that its files hold.

    A file may leave out the encoder's own name, or begin with what the family's first checkpoints begin with.
    """
    first = family_of(backbone.config).former_prefix
    called = {name: [name, name.removeprefix(f"{backbone.base_model_prefix}.")] for name in names}
    if first is not None:
        called = {name: [*own, *(f"{first}.{each}" for each in own)] for name, own in called.items()}
    found = read_tensors(files, chain(*called.values()))
    return {name: found[each] for name, own in called.items() for each in reversed(own) if each in found}


# ---- sharing one in memory -------------------------------------------------------------------------------------------


def check_sharing(stored: PreTrainedConfig, wanted: PreTrainedConfig, backbone: Any) -> None:
    """Refuse a `backbone=` that could not be used as it is, before anything is loaded."""
    if backbone is None:
        return
    if not isinstance(backbone, PreTrainedModel) or hasattr(backbone, "backbone"):
        refuse("backbone", type(backbone).__name__, "another model's `.backbone`: an encoder in memory")
    if not stored.adapter_only:
        refuse("backbone", "...", "left out: this checkpoint holds its encoder (adapter_only=False)")
    if wanted.train_backbone:
        refuse("train_backbone", True, "False with backbone=: another model stands on these weights")
    if not wanted.adapter_only:
        refuse("adapter_only", False, "True with backbone=: the encoder is another model's")


def check_shared(config: PreTrainedConfig, backbone: PreTrainedModel) -> None:
    """Refuse a backbone handed over in memory that is not the one the adapters were trained on."""
    check_same_shape(config.encoder_config(), backbone.config, "backbone")
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ValueError("backbone: must be frozen to be shared; this one has parameters that require gradients.")
    identity, expected = getattr(backbone, "identity", None), config.base_model_sha256
    if identity is None or expected is None:
        logger.warning_once(
            "backbone: its weights have no recorded hash, so it cannot be checked against the adapters."
        )
        return
    if identity.file_sha256 != expected:
        raise ValueError(
            f"backbone: its weights have sha256 {identity.file_sha256}, but these adapters were trained on {expected}."
        )
    if changed := difference(backbone):
        raise ValueError(f"backbone: it is no longer what was loaded from its base, {changed}.")


# ---- whether it could be found again ---------------------------------------------------------------------------------


def check_saveable(model: PreTrainedModel, folder: str | os.PathLike | None = None) -> None:
    """Refuse to write what would not be this model when it is loaded, or over the encoder it refers to."""
    if folder is not None:
        check_place(model.config, folder)
    check_without_peft(model)
    check_blueprint(model)
    if model.config.adapter_only:
        check_adapter_only(model)
    if (tokens := model.get_input_embeddings().num_embeddings) != model.config.vocab_size:
        refuse("vocab_size", model.config.vocab_size, f"{tokens}, as many as there are embeddings: "
               "model.resize_token_embeddings, not model.backbone's, changes both")  # fmt: skip


def check_given(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights to save in place of the model's own, as a copy: `transformers` takes out what a checkpoint leaves out.

    Raises:
        ValueError: what is left out, the encoder and a classifier's own head, is not the base's.
    """
    if not model.config.adapter_only:
        return dict(state_dict)
    known = {f"backbone.{name}": loaded for name, loaded in model.backbone.identity.tensors.items()}
    for stock, own in (model.exits.kept_weights() if model.exits is not None else {}).items():
        known[f"exits.{own}"] = model.exits.identity.tensors[stock]
    given = {name: tensor for name, tensor in state_dict.items() if name in known}
    if changed := changes({name: known[name] for name in given}, given, contents=True):
        refuse("state_dict", "...", f"of the encoder that was loaded, or saved with model.config.adapter_only = False: "
               f"{changed}")  # fmt: skip
    return dict(state_dict)


def check_base(config: PreTrainedConfig) -> None:
    """Refuse a model whose checkpoints would refer to an encoder that is nowhere."""
    if config.adapter_only and config.base_model_name_or_path is None:
        refuse("adapter_only", True, "False without base_model_name_or_path: there is no encoder to refer to")


def check_adapter_only(model: nn.Module, contents: bool = True) -> None:
    """Refuse to save, or to train on the way to saving, adapters whose encoder could not be found again.

    Args:
        model: one whose checkpoints hold no encoder.
        contents: compare every weight with what was loaded; without, this costs next to nothing.

    Raises:
        ValueError: the encoder has no base, is trained, resized or otherwise not what its base holds.
    """
    if problem := lost_encoder(model, contents):
        raise ValueError(
            f"adapter_only=True: cannot save the adapters alone, {problem}. "
            "Set model.config.adapter_only = False to train and save the whole model. Nothing was written."
        )


def check_trainable(model: nn.Module) -> None:
    """Refuse a training step whose result could not be saved, or that would move weights another model uses.

    Called at every step, it looks at names, shapes, dtypes and `requires_grad`, never at a weight.

    Raises:
        ValueError: the encoder is shared and not frozen; or checkpoints hold no encoder, and this one could not be
            found again.
    """
    if is_shared(model.backbone) and any(each.trained for each in own_parameters(model.backbone)):
        raise ValueError(
            "backbone: must be frozen while another model shares its weights; "
            "model.backbone = copy.deepcopy(model.backbone) gives this model its own."
        )
    warn_of_training(model.config)
    if model.config.adapter_only and not in_use(model):  # PEFT saves what it trains itself
        check_adapter_only(model, contents=False)


def lost_encoder(model: nn.Module, contents: bool) -> str | None:
    """Why the encoder could not be found again, in words; None if it could."""
    config, backbone = model.config, model.backbone
    tokens = backbone.get_input_embeddings().num_embeddings
    identity = getattr(backbone, "identity", None)
    if config.base_model_name_or_path is None or identity is None:
        return "its backbone has no base to refer to (random weights, or from a self-contained checkpoint)"
    if config.train_backbone or any(parameter.requires_grad for parameter in backbone.parameters()):
        return "its backbone is trained"
    if not tokens == backbone.config.vocab_size == config.vocab_size:
        return f"its token embeddings were resized to {tokens}"
    if config.base_model_sha256 != identity.file_sha256:
        return f"base_model_sha256={config.base_model_sha256!r} is not the hash of its encoder, {identity.file_sha256}"
    if changed := difference(backbone, contents):
        return f"its backbone is no longer what was loaded: {changed}"
    return None if model.exits is None else lost_head(model.exits, contents)


def lost_head(exits: Exits, contents: bool) -> str | None:
    """Why a last exit that is a classifier's own head could not be found again, in words; None if it could."""
    if not (kept := exits.kept_weights()):
        return None
    if exits.identity is None:
        return "its last exit's head was not read from its base"
    weights = exits.state_dict()
    changed = changes(exits.identity.tensors, {stock: weights[own] for stock, own in kept.items()}, contents)
    return changed and f"its last exit is no longer the classifier's own: {changed}"
