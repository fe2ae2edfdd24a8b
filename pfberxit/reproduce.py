"""`pfberxit reproduce`: the paper's tables and figures, printed values beside ours."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from .options import add_budget, add_data, tasks_of

HELP = "the paper's tables and figures, printed values beside ours"


def add_arguments(parser: ArgumentParser) -> None:
    """Tables and figures, tasks, an encoder, and the budget of every training."""
    parser.add_argument(
        "items",
        nargs="+",
        help="table1 to table6, figure2 to figure5, frontiers, points, gap; retrofits, texts, speed (of classifiers)",
    )
    add_data(parser, "nyu-mll/glue")
    parser.add_argument(
        "--tasks", nargs="+", help="its configurations (default: all of GLUE but WNLI and STS-B; of a file: itself)"
    )
    parser.add_argument(
        "--backbone", default="albert/albert-base-v2", help="Hub id or folder of an encoder, minilm or mpnet"
    )
    add_budget(parser, [1, 2, 3, 4, 5], 0, 5)
    parser.add_argument(
        "--variants", nargs="+", help="of gap, what the others are compared with in front (default: all of them)"
    )
    parser.add_argument("--no-dropout", action="store_false", dest="dropout", help="in the encoder; faster on CPU")
    parser.add_argument("--output", default="runs/reproduce", help="where trainings are kept; they are not run again")


def run(
    items: list[str], dataset: str, columns: dict[str, Any], tasks: list[str] | None, backbone: str, seeds: list[int],
    rows: int, held_out: int, epochs: float, max_length: int, dropout: bool, output: str, variants: list[str] | None,
) -> None:  # fmt: skip
    """Print every table, and the numbers of every figure, as it is finished; write all to the output folder."""
    from modeling_pfberxit.studies.named_encoders import named_backbone
    from modeling_pfberxit.studies.reproduce import Study, reproduce
    from modeling_pfberxit.studies.runs import Budget

    tasks = tasks_of(dataset, tasks, "cola", "rte", "mrpc", "sst2", "qnli", "mnli", "qqp")
    budget = Budget(rows, epochs, held_out, max_length=max_length, dropout=dropout)
    study = Study(
        dataset, tuple(tasks), named_backbone(backbone), tuple(seeds), budget, Path(output), columns,
        variants=tuple(variants or ()), say=print,
    )  # fmt: skip
    for item, text in reproduce(items, study):
        print(f"\n{item}\n\n{text}\n", flush=True)
