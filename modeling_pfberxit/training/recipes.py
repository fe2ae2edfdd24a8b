"""Recipes: a task, an encoder and a training, as files of `configuration/recipes/`.

Every key is an option of `pfberxit train`, a field of the config or one of `TrainingArguments`. The encoder's commit is
left open (`revision`) and found out when a recipe is used. GLUE's rows and epochs are those of docs/results.md.
"""

import json
from dataclasses import fields
from importlib import resources
from typing import Any

from transformers import TrainingArguments

from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.validation import refuse

OPTIONS = ("backbone", "revision", "dataset", "config", "rows", "max_length")
GLUE = {
    "backbone": "sentence-transformers/all-MiniLM-L6-v2",
    "revision": None,
    "dataset": "nyu-mll/glue",
    "rows": 0,
    "max_length": 128,
    "adapter_sublearner": "mlp",
    "adapter_dim": 32,
    "learning_rate": 1e-3,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 32,
    "warmup_steps": 0.06,
    "weight_decay": 0.01,
    "seed": 1,
}
WIDE = {  # nearer to training all weights at full depth: docs/results.md, "Closing the gap at full depth"
    **GLUE, "rows": 2_000, "max_length": 64, "adapter_placement": "both", "adapter_dim": 64, "learning_rate": 2e-3,
    "num_train_epochs": 3,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "sst2": {**GLUE, "config": "sst2", "rows": 20_000, "num_train_epochs": 2},
    "mrpc": {**GLUE, "config": "mrpc"},
    "stsb": {**GLUE, "config": "stsb"},
    "sst2-wide": {**WIDE, "config": "sst2"},
    "stsb-wide": {**WIDE, "config": "stsb"},
    "topics": {  # several labels for each row
        **GLUE, "dataset": "support_desk", "config": "topics", "num_train_epochs": 12,
        "per_device_train_batch_size": 16, "seed": 0,
    },
}  # fmt: skip


def load_recipe(name: str) -> dict[str, Any]:
    """The arguments of a recipe, by its name.

    Raises:
        ValueError: an unknown name; the message lists those there are.
    """
    if name not in RECIPES:
        refuse("recipe", name, f"one of {', '.join(RECIPES)}")
    file = resources.files("modeling_pfberxit.configuration").joinpath("recipes", f"{name}.json")
    return json.loads(file.read_text(encoding="utf-8"))


def sorted_out(recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A recipe's options of `pfberxit train`, its fields of the config, and those of `TrainingArguments`."""
    config, training = ({field.name for field in fields(kind)} for kind in (PFBerxitConfig, TrainingArguments))
    options = {name: value for name, value in recipe.items() if name in OPTIONS}
    knobs = {name: value for name, value in recipe.items() if name in config - training - set(OPTIONS)}
    return options, knobs, {name: value for name, value in recipe.items() if name not in {*options, *knobs}}


def as_json(recipe: dict[str, Any]) -> str:
    """The file's text, in alphabetical order."""
    return json.dumps(recipe, indent=2, sort_keys=True) + "\n"
