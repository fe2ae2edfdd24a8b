"""`pfberxit calibrate`: operating points for targets, stored with the model."""

import os
from argparse import ArgumentParser
from typing import Any

from .options import add_model_and_data

HELP = "find exit settings for a target and store them with the model"


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, its data, and the targets; without one, three speed-ups."""
    add_model_and_data(parser)
    parser.add_argument("--speed-up", type=float, nargs="*", default=[], help="by layers, at least; e.g. 1.25 1.5 2")
    parser.add_argument("--max-drop", type=float, nargs="*", default=[], help="of the score, at most; e.g. 0.01")
    parser.add_argument(
        "--milliseconds", type=float, nargs="*", default=[], help="a request of one row, on this machine"
    )
    parser.add_argument("--agreement", type=float, nargs="*", default=[], help="with full depth, guaranteed; e.g. 0.95")
    parser.add_argument("--criteria", nargs="+", help="to choose among (default: all that can judge the task)")
    parser.add_argument("--seed", type=int, default=0, help="of the split into rows to choose on and rows to report on")


def run(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any], seed: int,
    criteria: list[str] | None, **targets: list[float],
) -> None:  # fmt: skip
    """Find a point for every target on half of the rows, print it measured on the others, store it in the config."""
    from modeling_pfberxit.evaluation.frontier import sweep
    from modeling_pfberxit.evaluation.saved_model import recorded
    from modeling_pfberxit.evaluation.targets import as_markdown, operating_point, reach, store
    from modeling_pfberxit.model.exit_policy import FULL_DEPTH

    targets = targets if any(targets.values()) else {"speed_up": [1.25, 1.5, 2.0]}
    loaded, task, whole = recorded(model, dataset, config, split, rows, columns)
    chosen_on, reported_on = whole.split(0.5, seed)
    found = reach(loaded, chosen_on, reported_on, task.metric, criteria, **targets)
    stored = {name: operating_point(each, whole, task, len(reported_on)) for name, each in found.items()}
    (full,) = sweep(reported_on, [FULL_DEPTH], task.metric)
    print(f"\n{task.name}: chosen on {len(chosen_on)} rows, reported on {len(reported_on)} others\n")
    print(as_markdown(found, full.score, task.metric))
    if not os.path.isdir(model):
        print(f"\nNot stored: {model} is no folder of this machine.")
        return
    store(model, stored)
    print(f"\nStored in {model}/config.json; use one by its name: exit_policy={next(iter(stored))!r}")
