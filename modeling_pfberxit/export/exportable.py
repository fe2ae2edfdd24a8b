"""What cannot be one file that exits by itself, refused by name before anything is translated."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from ..model.criteria import able, rule_of
from ..model.exit_policy import ExitPolicy, resolve_policy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .parts import NO_OPERATOR, emitting


def check_exportable(model: PFBerxitForSequenceClassification) -> None:
    """Refuse models that a file cannot hold."""
    if model.token_exits is not None:
        refuse("token_exits", True, "False: a file cannot hold tokens that leave on their own")
    if model.prompts is not None:
        refuse("prompt_generator", model.config.prompt_generator, "None: a file cannot hold prompts yet")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse a tokenizer that is no file of `tokenizers`."""
    if tokenizer is not None and getattr(tokenizer, "backend_tokenizer", None) is None:
        refuse("tokenizer", type(tokenizer).__name__, "a fast one, which has a tokenizer.json")


def exportable_policy(request: Any, model: PFBerxitForSequenceClassification) -> ExitPolicy:
    """The policy a file is made for: the model's own, or what was asked for.

    Raises:
        ValueError: it is off; its evidence is none that a file can hold; or what `resolve_policy` refuses.
    """
    problem_type = problem_type_of(model.config)
    policy = resolve_policy(request, model.config, model.exit_depths, problem_type)
    rules = ", ".join(able(problem_type, emitting(model)))
    if policy is None:
        refuse("policy", request, f"a rule by which rows leave, with its threshold: {rules}; this is full depth")
    if rule_of(policy).needs_evidence == NO_OPERATOR:
        refuse("exit_criterion", policy.criterion, f"one of {rules}: ONNX has no pseudo-inverse, by which "
               f"{policy.criterion} finds what no class sees")  # fmt: skip
    return policy
