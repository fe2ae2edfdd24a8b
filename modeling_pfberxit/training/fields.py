"""Fields of `TrainingArguments` as words of a command line, under their own names."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from ..model.validation import refuse

# What `pfberxit train` has an option for, or has no use for.
ELSEWHERE = {
    "output_dir": "--output", "push_to_hub": "--push", "hub_model_id": "--push REPO", "use_cpu": "--device cpu",
    "do_train": "nothing", "do_eval": "--eval_strategy", "do_predict": "`pfberxit predict`",
    "hub_private_repo": "--push to a repository that is private", "hub_token": "HF_TOKEN",
    "label_smoothing_factor": "--set label_smoothing=0.1", "label_names": "--label",
    **dict.fromkeys(("hub_strategy", "hub_always_push", "hub_revision", "prediction_loss_only", "batch_eval_metrics",
                     "eval_do_concat_batches"), "nothing"),
}  # fmt: skip


class OneLineParser(HfArgumentParser):
    """The parser of `transformers`; what it refuses is one line, without a list of all options."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise ValueError(f"TrainingArguments: {message}.")


def training_fields(words: Sequence[str], own: Sequence[str] = ()) -> dict[str, Any]:
    """`["--num_train_epochs", "3"]` -> {"num_train_epochs": 3.0}: the fields that are named, of their own types.

    Args:
        own: further options there are, for suggestions.

    Raises:
        ValueError: an unknown name, with the one that may be meant; a value of another type.
    """
    known = {field.name for field in fields(TrainingArguments)}
    for word in words:
        if word.startswith("--"):
            check_name(word.partition("=")[0], known, own)
    parser = OneLineParser(TrainingArguments, add_help=False, allow_abbrev=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    found, rest = parser.parse_known_args(list(words))
    if rest:
        refuse("arguments", " ".join(rest), "options, each with its name in front")
    return vars(found)


def check_name(option: str, known: set[str], own: Sequence[str]) -> None:
    """Refuse an option that is no field, or one that is called otherwise here."""
    name = option[2:].replace("-", "_")
    if name in ELSEWHERE:
        refuse(option, "...", f"left out; here it is {ELSEWHERE[name]}")
    if name not in known:
        near = get_close_matches(option, [*own, *(f"--{each}" for each in known)], n=1)
        hint = f"; is {near[0]} meant?" if near else ""
        refuse(option, "...", f"an option of this command or a field of TrainingArguments{hint}")
