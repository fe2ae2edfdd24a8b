"""`pfberxit compare`: every system on one backbone, with one budget."""

from argparse import ArgumentParser
from typing import Any

from .options import add_budget, add_data, tasks_of

HELP = "train published systems on one backbone with one budget"


def add_arguments(parser: ArgumentParser) -> None:
    """Systems, tasks, an encoder, and the budget of every training."""
    parser.add_argument(
        "--systems", nargs="+", default=["all"], metavar="SYSTEM", help="all, or some; an unknown name lists them"
    )
    parser.add_argument(
        "--tasks", nargs="+", help="configurations, or dataset:config (default: mrpc rte sst2; of a file: itself)"
    )
    add_data(parser, "nyu-mll/glue")
    parser.add_argument("--backbone", help="Hub id or folder of an encoder, minilm or mpnet (default: minilm)")
    add_budget(parser, [1, 2, 3], 8000, 3)
    parser.add_argument("--batch-size", type=int, default=32, help="of training")
    parser.add_argument("--no-dropout", action="store_false", dest="dropout", help="in the encoder; faster on CPU")
    parser.add_argument("--saved", nargs="+", type=float, default=[0.6, 0.5, 0.25], help="shares of layers to save")
    parser.add_argument("--output", default="runs/compare", help="where trainings are kept; they are not run again")


def run(
    systems: list[str], tasks: list[str] | None, dataset: str, columns: dict[str, Any], backbone: str | None,
    seeds: list[int], rows: int, held_out: int, epochs: float, max_length: int, batch_size: int, dropout: bool,
    saved: list[float], output: str,
) -> None:  # fmt: skip
    """Train what is missing, print the table after every task and seed, keep it and the raw numbers."""
    from modeling_pfberxit.model.systems import SYSTEMS, check_system
    from modeling_pfberxit.studies.compare import compare
    from modeling_pfberxit.studies.named_encoders import named_backbone
    from modeling_pfberxit.studies.runs import Budget

    systems = list(SYSTEMS) if systems == ["all"] else systems
    for system in systems:
        check_system(system)
    named = [task.rpartition(":") for task in tasks_of(dataset, tasks, "mrpc", "rte", "sst2")]
    asked = [(source or dataset, config) for source, _, config in named]
    budget = Budget(rows, epochs, held_out, batch_size, max_length, dropout)
    compare(systems, asked, named_backbone(backbone), seeds, budget, saved, output, columns, say=print)
