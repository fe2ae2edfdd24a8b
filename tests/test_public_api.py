"""What users import and type, as a list that is kept: `python tests/test_public_api.py` writes it anew."""

import inspect
from dataclasses import fields
from importlib import import_module
from pathlib import Path

from transformers import PreTrainedConfig

from modeling_pfberxit import ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification, PFBerxitOutput
from pfberxit.cli import parser

LIST = Path(__file__).with_name("public_api.txt")
MODULES = (
    "modeling_pfberxit", "modeling_pfberxit.training", "modeling_pfberxit.calibration",
    "modeling_pfberxit.evaluation.recording", "modeling_pfberxit.evaluation.clock",
)  # fmt: skip
METHODS = (
    "forward",
    "predict",
    "from_backbone",
    "from_classifier",
    "from_pretrained",
    "save_pretrained",
    "push_to_hub",
)


def public(module: str) -> list[str]:
    """The names a module offers: its `__all__`, or what it defines without an underscore."""
    found = import_module(module)
    names = getattr(found, "__all__", None) or [
        name for name, value in vars(found).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]  # fmt: skip
    return sorted(names)


def arguments(function) -> str:
    """The names of a function's arguments."""
    return ", ".join(name for name in inspect.signature(function).parameters if name not in ("self", "cls"))


def listed() -> list[str]:
    """Names, arguments, fields with their defaults, and every command's flags, a line each."""
    lines = []
    for module in MODULES:
        for name in public(module):
            value = getattr(import_module(module), name)
            lines.append(f"{module}.{name}" + (f"({arguments(value)})" if inspect.isfunction(value) else ""))
    model = PFBerxitForSequenceClassification
    lines += [f"{model.__name__}.{name}({arguments(getattr(model, name))})" for name in METHODS]
    lines += [f"PFBerxitOutput.{field.name}" for field in fields(PFBerxitOutput)]
    lines += [f"ExitPolicy.{field.name} = {field.default!r}" for field in fields(ExitPolicy)]
    own = {field.name for field in fields(PFBerxitConfig)} - {field.name for field in fields(PreTrainedConfig)}
    lines += [f"PFBerxitConfig.{name} = {getattr(PFBerxitConfig(), name)!r}" for name in sorted(own)]
    (commands,) = (action for action in parser()._actions if hasattr(action, "choices") and action.choices)
    for name, command in commands.choices.items():
        for action in command._actions:
            lines.append(f"pfberxit {name} {'/'.join(action.option_strings) or action.dest.upper()}")
    return lines


def test_names_fields_and_flags_are_those_that_users_know():
    assert listed() == LIST.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    LIST.write_text("\n".join(listed()) + "\n", encoding="utf-8")
