"""`pfberxit frontier`: score against layers saved, for every criterion."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from .options import add_model_and_data

HELP = "score against layers saved, for every exit criterion"


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, its data, and sizes to time."""
    add_model_and_data(parser)
    parser.add_argument("--output", default="runs/frontier", help="a folder for recording, CSV and picture")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[], help="to time: milliseconds a row in the CSV")
    parser.add_argument("--lengths", nargs="+", type=int, help="in tokens, for each batch size (default: 32 128)")


def run(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any], output: str,
    batch_sizes: list[int], lengths: list[int] | None,
) -> None:  # fmt: skip
    """Write a recording, a CSV and a picture to a folder, print the table; with milliseconds where sizes are given."""
    from modeling_pfberxit.evaluation import plots
    from modeling_pfberxit.evaluation.clock import measure_clock
    from modeling_pfberxit.evaluation.frontier import sweep
    from modeling_pfberxit.evaluation.frontier_report import as_markdown, frontiers, write_csv
    from modeling_pfberxit.evaluation.saved_model import recorded
    from modeling_pfberxit.model.exit_policy import FULL_DEPTH
    from modeling_pfberxit.model.validation import refuse

    if lengths and not batch_sizes:
        refuse("lengths", lengths, "given together with --batch-sizes, which are what is timed")
    loaded, task, recording = recorded(model, dataset, config, split, rows, columns)
    clock = measure_clock(loaded, batch_sizes, lengths or (32, 128)) if batch_sizes else None
    folder = Path(output)
    recording.save(folder / "recording.safetensors")
    found = frontiers(recording, task.metric, loaded.config)
    (full,) = sweep(recording, [FULL_DEPTH], task.metric)
    write_csv(found, folder / "frontier.csv", clock)
    title = f"{task.name}, {recording.source['split']}: {len(recording)} rows, one model, 95 % bootstrap over rows"
    plots.frontiers(found, full.score, task.metric, folder / "frontier.png", title)
    print(f"\n{task.name}: {task.metric} {full.score:.3f} at full depth, {len(recording)} rows\n")
    print(as_markdown(found, task.metric))
    print(f"\nWrote {folder}/recording.safetensors, frontier.csv and frontier.png")
