"""`pfberxit table`: every layer's score, frozen beside trained."""

from argparse import ArgumentParser
from itertools import product
from pathlib import Path
from typing import Any

from .options import add_budget, add_data, tasks_of
from .train import knobs_of

HELP = "score at every layer and at three exit settings, frozen beside trained"


def add_arguments(parser: ArgumentParser) -> None:
    """Tasks, an encoder, and the budget of every training."""
    add_data(parser, "nyu-mll/glue")
    parser.add_argument(
        "--tasks", nargs="+", help="its configurations (default: mrpc rte stsb sst2; of a file: itself)"
    )
    parser.add_argument("--backbone", help="Hub id or folder of an encoder, minilm or mpnet (default: minilm)")
    parser.add_argument("--modes", nargs="+", default=["frozen", "trained"], choices=["frozen", "trained"])
    add_budget(parser, [1], 20_000, 5)
    parser.add_argument("--saved", nargs="+", type=float, default=[0.25, 0.4, 0.5], help="shares of layers to save")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", dest="knobs", help="config fields to set")
    parser.add_argument("--output", default="runs/table", help="where finished runs are kept; they are not run again")


def run(
    dataset: str, columns: dict[str, Any], tasks: list[str] | None, backbone: str | None, modes: list[str],
    seeds: list[int], rows: int, held_out: int, epochs: float, max_length: int, saved: list[float], knobs: list[str],
    output: str,
) -> None:  # fmt: skip
    """Run the trainings that are not cached, print the table after each."""
    from modeling_pfberxit.data.source import Source
    from modeling_pfberxit.studies.layer_table import as_markdown, measured
    from modeling_pfberxit.studies.named_encoders import named_backbone
    from modeling_pfberxit.studies.results import added
    from modeling_pfberxit.studies.runs import Budget, Run

    backbone, fields = named_backbone(backbone), knobs_of(knobs)
    results: list[dict] = []
    tasks = tasks_of(dataset, tasks, "mrpc", "rte", "stsb", "sst2")
    for source in [Source.read(dataset, task, **columns) for task in tasks]:
        for mode, seed in product(modes, seeds):
            one = Run(source, backbone, seed, Budget(rows, epochs, held_out, max_length=max_length))
            results.append(measured(Path(output), one, mode, fields, saved, say=print))
            added(Path(output), results, "mode")
            print(as_markdown(results) + "\n", flush=True)
