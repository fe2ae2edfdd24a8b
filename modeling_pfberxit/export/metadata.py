"""What a file says of itself: labels, rule, operating points and certificates, hashes, lengths, padding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..model.backbones import longest_input, table_sizes
from ..model.criteria import fits, rule_of
from ..model.exit_policy import ExitPolicy, describe, resolve_policy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import label_names
from .facts import activation_of, library_version
from .parts import per_row

PER_ROW = ("threshold", "patience")  # what a request may change; everything else is built in


def metadata_of(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase | None, policy: ExitPolicy,
    max_length: int,
) -> dict[str, Any]:  # fmt: skip
    """The facts, as JSON can hold them."""
    config = model.config
    return {
        "version": library_version(),
        "problem_type": problem_type_of(config),
        "activation": activation_of(config),
        "id2label": label_names(config),
        "layers": model.exit_depths[-1],
        "exit_layers": list(model.exit_depths),
        "rule": describe(policy),
        "policy": policy.stated(),
        "most_patience": most_patience(policy, model),
        "reads": [name for name in PER_ROW if reads(policy, name, problem_type_of(config))],
        "operating_points": points_of(model, policy, max_length),
        "base_model": {"name": config.base_model_name_or_path, "revision": config.base_model_revision,
                       "sha256": config.base_model_sha256},
        "weights_sha256": config.weights_sha256,
        "max_length": max_length,
        "longest_input": finite(longest_input(config.encoder_config())),
        "vocabulary": table_sizes(model.backbone).get("input_ids"),
        "token_types": tokenizer is None or "token_type_ids" in tokenizer.model_input_names,
        "padding": {"side": "right", "id": 0 if tokenizer is None else tokenizer.pad_token_id or 0},
    }  # fmt: skip


def reads(policy: ExitPolicy, name: str, problem_type: str) -> bool:
    """Whether the rule reads tau, or patience, from the request."""
    rule = rule_of(policy)
    if name == "threshold":
        return rule.needs_threshold(problem_type) and per_row(policy)
    return name in rule.reads(policy)


def most_patience(policy: ExitPolicy, model: PFBerxitForSequenceClassification) -> int:
    """The largest patience that the rule allows on this model."""
    able = [each for each in range(1, len(model.exit_depths) + 1)
            if fits(replace(policy, patience=each), model.exit_depths, problem_type_of(model.config))]  # fmt: skip
    return max(able)


def points_of(model: PFBerxitForSequenceClassification, policy: ExitPolicy, max_length: int) -> dict[str, Any]:
    """The model's operating points that this file serves: those that differ from its policy in nothing built in.

    A certificate of texts that were cut to another length than here, or of weights that are no float32, is left out.
    """
    names, found = list(model.config.operating_points), {}
    for name in names:
        other = resolve_policy(name, model.config, model.exit_depths, problem_type_of(model.config))
        if other is not None and served(policy, other):
            asked = {field: value for field, value in other.stated().items() if field in PER_ROW}
            point = {**asked, **model.config.operating_points[name]}
            if not holds(point.get("certificate", {}), max_length):
                del point["certificate"]
            found[name] = point
    return found


def holds(certificate: dict[str, Any], max_length: int) -> bool:
    """Whether a certificate, if there is one, speaks of a file in float32 that reads so many tokens."""
    return certificate.get("max_length", max_length) == max_length and certificate.get("dtype", "float32") == "float32"


def served(policy: ExitPolicy, other: ExitPolicy) -> bool:
    """Whether a file for one policy answers as another asks, tau and patience given with the request."""
    fixed = not (per_row(policy) and per_row(other))
    own = replace(policy, patience=other.patience, threshold=policy.threshold if fixed else other.threshold)
    return own.stated() == other.stated()


def finite(length: float) -> int | None:
    """A number of tokens; None where there is no end to it."""
    return None if length == float("inf") else int(length)
