"""The command line: `pfberxit` with one file for each command.

A command's file has `HELP`, `add_arguments(parser)` and `run(...)`, which takes the arguments by name and imports the
library when it runs, so that `pfberxit --help` imports neither torch nor transformers. Only commands print.
"""

from argparse import ArgumentParser
from importlib import import_module

COMMANDS = (
    "quickstart", "retrofit", "predict", "suitability", "table", "compare", "frontier", "report", "elue", "calibrate",
    "certify", "precision", "reproduce", "benchmark",
)  # fmt: skip


def parser() -> ArgumentParser:
    """The parser of all commands."""
    whole = ArgumentParser(prog="pfberxit", description="Early-exiting text classifiers with adapters.")
    commands = whole.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = import_module(f"pfberxit.{name}")
        own = commands.add_parser(name, help=command.HELP)
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return whole


def main(arguments: list[str] | None = None) -> None:
    """Parse and run; bad values end in one line, not in a traceback."""
    options = vars(parser().parse_args(arguments))
    run = options.pop("run")
    options.pop("command")
    try:
        run(**options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"pfberxit: {error}") from error
