"""`pfberxit compare`: from systems and tasks to a table."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ..evaluation import plots
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.systems import SYSTEMS
from .comparison import Budget, Run, compared_config, trained
from .comparison_table import as_markdown, measure


def compare(
    systems: list[str], tasks: list[tuple[str, str]], backbone: str, seeds: list[int], budget: Budget,
    goals: list[float], output: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train what is missing; print and write the table as results come in.

    Args:
        tasks: pairs of a data set (Hub id or folder) and its configuration.
        goals: the shares of layers to save at which systems are compared.
        output: a folder: `recordings/` of trained models, `results.json`, `table.md` and `comparison.png`.
    """
    folder, results, started = Path(output), [], time.perf_counter()
    runs = [Run(dataset, config, seed, backbone, budget) for seed in seeds for dataset, config in tasks]
    for number, run in enumerate(runs, start=1):
        for system in systems:
            minutes = (time.perf_counter() - started) / 60
            results.append(measured(folder, run, system, goals, f"[{number}/{len(runs)}, {minutes:.0f} min] "))
        write(folder, merged(folder, results), goals)
        print("\n" + as_markdown([each for each in results if each["task"] == results[-1]["task"]], goals) + "\n")
    return results


def measured(folder: Path, run: Run, system: str, goals: list[float], progress: str) -> dict[str, Any]:
    """A system's result on one task and seed."""
    config = compared_config(system, run.backbone)
    if not config.token_exits:
        return measure(system, config, trained(folder, run, config, progress), goals)
    # Where tokens leave is settled before training, so every share is a training of its own.
    results = []
    for goal in goals:
        config.token_exit_range = token_range(config, goal)
        results.append(measure(system, config, trained(folder, run, config, progress), [goal]))
    return {**results[-1], "points": [each["points"][0] for each in results]}


def token_range(config: PFBerxitConfig, goal: float) -> list[int]:
    """Lowest and highest layer for tokens, so that about the share asked for is saved.

    Frequent tokens make up most of a text and leave first, so the lowest layer settles the share.
    """
    layers = config.encoder_config().num_hidden_layers
    low = max(1, min(layers, round(layers * (1 - goal))))
    return [low, layers]


def merged(folder: Path, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These results, and what the folder has of other tasks, seeds and systems, in the order of tasks and systems."""
    path, key = folder / "results.json", ("task", "seed", "system")
    known = json.loads(path.read_text()) if path.exists() else []
    place = list(SYSTEMS)
    by_key = {tuple(each[name] for name in key): each for each in [*known, *results]}
    return sorted(by_key.values(), key=lambda each: (each["task"], place.index(each["system"]), each["seed"]))


def write(folder: Path, results: list[dict[str, Any]], goals: list[float]) -> None:
    """The raw numbers, the table and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "table.md").write_text(as_markdown(results, goals) + "\n")
    runs = {(each["task"], each["seed"]) for each in results}
    seeds = " or ".join(map(str, sorted(set(Counter(task for task, _ in runs).values()))))
    plots.comparison(results, goals, folder / "comparison.png", f"{seeds} seed(s), mean and standard deviation")
