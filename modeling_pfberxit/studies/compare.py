"""The comparison of systems: train them on tasks and seeds, write a table and a picture."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.source import Source
from ..evaluation import plots
from ..model.systems import SYSTEMS
from .compared import compared_config, token_range
from .comparison_table import as_markdown, measure
from .results import added, group
from .runs import Budget, Run
from .trainings import trained


def compare(
    systems: list[str], tasks: list[tuple[str, str]], backbone: str, seeds: list[int], budget: Budget,
    goals: list[float], output: str, columns: dict[str, Any] | None, say: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Train what is missing; say and write the table as results come in.

    Args:
        tasks: pairs of a data set (Hub id or folder) and its configuration.
        goals: the shares of layers to save at which systems are compared.
        columns: what the data sets' columns mean, as `load_task` takes it.
        output: a folder: `recordings/` of trained models, `results.json`, `table.md` and `comparison.png`.
        say: called with a line for every training, and with the tables.
    """
    folder, results, started = Path(output), [], time.perf_counter()
    sources = [Source.read(dataset, config, **(columns or {})) for dataset, config in tasks]
    runs = [Run(source, backbone, seed, budget) for seed in seeds for source in sources]
    for number, run in enumerate(runs, start=1):
        for system in systems:
            minutes = (time.perf_counter() - started) / 60
            results.append(measured(folder, run, system, goals, say, f"[{number}/{len(runs)}, {minutes:.0f} min] "))
        write(folder, results, goals)
        say("\n" + as_markdown([each for each in results if group(each) == group(results[-1])], goals) + "\n")
    return results


def measured(
    folder: Path, run: Run, system: str, goals: list[float], say: Callable[[str], None], progress: str
) -> dict[str, Any]:
    """A system's result on one task and seed."""
    config = compared_config(system, run.backbone)
    if not config.token_exits:
        return measure(system, config, trained(folder, run, config, say, progress), goals)
    # The layers tokens exit after are fixed before training, so every share is a training of its own.
    results = []
    for goal in goals:
        config.token_exit_range = token_range(config, goal)
        results.append(measure(system, config, trained(folder, run, config, say, progress), [goal]))
    return {**results[-1], "points": [each["points"][0] for each in results]}


def write(folder: Path, results: list[dict[str, Any]], goals: list[float]) -> None:
    """Add results to the folder's, and write numbers, table and picture of all of them."""
    place = list(SYSTEMS)
    everything = added(folder, results, "system")
    everything.sort(key=lambda each: (group(each), place.index(each["system"]), each["seed"]))
    (folder / "table.md").write_text(as_markdown(everything, goals) + "\n", encoding="utf-8")
    runs = {(group(each), each["seed"]) for each in everything}
    seeds = " or ".join(map(str, sorted(set(Counter(of for of, _ in runs).values()))))
    title = f"{seeds} seed(s), mean and standard deviation"
    plots.comparison(panels(everything), goals, folder / "comparison.png", title)


def panels(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results by their task's name; where several runs share one, by its name and number."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number, of in enumerate(dict.fromkeys(map(group, results)), start=1):
        same = [each for each in results if group(each) == of]
        name = same[0]["task"]
        found[f"{name} ({number})" if name in found else name] = same
    return found
