"""Pictures of what was measured. Every one of them has its numbers beside it in a table."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first

# Okabe and Ito's colours, told apart by colour-blind readers; mid-grey text reads on light and on dark ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
INK = "#7f7f7f"


class Banded(Protocol):
    """A point of a frontier with the interval of its score."""

    saved: float
    score: float
    low: float | None
    high: float | None


class Timed(Protocol):
    """A measured case of the benchmark."""

    batch: int
    case: str
    saved: float
    efficiency: float


def exit_depths(groups: dict[str, np.ndarray], layers: int, path: str | Path, title: str) -> Path:
    """Share of rows that left at each layer, grouped bars, as a PNG with a transparent ground."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    width, places = 0.8 / len(groups), np.arange(1, layers + 1)
    for number, (name, depths) in enumerate(groups.items()):
        shares = [100 * float((depths == layer).mean()) for layer in places]
        offset = (number - (len(groups) - 1) / 2) * width
        colour = COLOURS[number % len(COLOURS)]
        axes.bar(places + offset, shares, width, color=colour, label=f"{name} (mean {depths.mean():.2f})")
    axes.set(xlabel="layer at which the row left", ylabel="rows (%)", xticks=places)
    return finish(figure, axes, path, title)


def frontiers(found: dict[str, Sequence[Banded]], full: float, metric: str, path: str | Path, title: str) -> Path:
    """Score over layers saved, a panel per criterion with its 95 % band, the others behind it; dotted: full depth."""
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    size = (10, 2.4 * lines) if len(found) > 1 else (7, 3.2)
    figure, panels = plt.subplots(
        lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, name in zip_longest(panels.flat, found):
        if name is None:
            axes.set_visible(False)
            continue
        axes.axhline(full, color=INK, linestyle=":", linewidth=1)
        for points in found.values():
            axes.plot([100 * p.saved for p in points], [p.score for p in points], color=INK, lw=0.6, alpha=0.35)
        points = found[name]
        saved = [100 * point.saved for point in points]
        axes.fill_between(saved, [p.low for p in points], [p.high for p in points], color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(saved, [point.score for point in points], "o-", color=COLOURS[0], ms=3, lw=1.5)
        axes.set_title(name, color=INK, fontsize=9)
        recolour(axes)
    return finish_panels(figure, "layers saved (%)", metric, path, title)


def curves(
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], across: str, path: str | Path, title: str
) -> Path:
    """A panel per task, a line per variant: x (k,) and scores (seeds, k), their mean with the range over seeds."""
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(3.2 * columns, 2.8 * lines), squeeze=False, layout="constrained"
    )
    for axes, task in zip_longest(panels.flat, found):
        if task is None:
            axes.set_visible(False)
            continue
        for number, (name, (places, scores)) in enumerate(found[task].items()):
            colour, marker = COLOURS[number % len(COLOURS)], "os^D"[number // len(COLOURS) % 4]
            axes.plot(places, scores.mean(0), marker + "-", color=colour, ms=3, lw=1.3, label=name)
            axes.fill_between(places, scores.min(0), scores.max(0), color=colour, alpha=0.15, lw=0)
        axes.set_title(task, color=INK, fontsize=9)
        recolour(axes)
    panels.flat[0].legend(frameon=False, labelcolor=INK, fontsize=7)
    return finish_panels(figure, across, "score", path, title)


def efficiencies(lines: Sequence[Timed], path: str | Path, title: str) -> Path:
    """Efficiency over layers saved, a panel per batch size, a line per case that saves any; dotted: 1."""
    ours = [line for line in lines if line.saved > 0]
    batches, cases = (sorted({getattr(line, name) for line in ours}) for name in ("batch", "case"))
    cases = [case for case in cases if not case.startswith("first")] + ["first k layers"]
    figure, panels = plt.subplots(
        1, len(batches), figsize=(1 + 3.4 * len(batches), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, batch in zip(panels.flat, batches):
        axes.axhline(1.0, color=INK, linestyle=":", linewidth=1)
        for number, case in enumerate(cases):
            found = [line for line in ours if line.batch == batch and (
                line.case == case or case.startswith("first") and line.case.startswith("first")
            )]  # fmt: skip
            places = sorted({round(line.saved, 2) for line in found})
            means = [np.mean([x.efficiency for x in found if round(x.saved, 2) == place]) for place in places]
            colour, marker = COLOURS[number % len(COLOURS)], "os^D"[number // len(COLOURS) % 4]
            axes.plot([100 * place for place in places], means, marker + "-", color=colour, ms=4, lw=1.3, label=case)
        axes.set_title(f"batch {batch}", color=INK, fontsize=9)
        recolour(axes)
    named = panels.flat[-1].get_legend_handles_labels()
    figure.legend(*named, loc="outside right center", frameon=False, labelcolor=INK, fontsize=8)
    return finish_panels(figure, "layers saved (%)", "wall-clock speed-up / layer speed-up", path, title)


def comparison(
    found: dict[str, Sequence[dict[str, Any]]], goals: Sequence[float], path: str | Path, title: str
) -> Path:
    """A panel per task, a line per system: mean scores at shares of layers saved and at full depth, with their sd.

    Args:
        found: by the panel's name, results of `compare`, one for each system and seed; dotted: the majority class.
    """
    systems = list(dict.fromkeys(each["system"] for results in found.values() for each in results))
    size = (1.5 + 2.6 * len(found), 1.2 + 0.27 * len(systems))
    figure, panels = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, (task, of_task) in zip(panels.flat, found.items()):
        axes.axvline(np.mean([each["majority"] for each in of_task]), color=INK, ls=":", lw=1)
        for number, goal in enumerate([*goals, 0]):
            dots(axes, of_task, systems, number, (number - len(goals) / 2) * 0.16, goal)
        axes.set_title(task, color=INK, fontsize=9)
        axes.set(xlabel=of_task[0]["metric"], yticks=range(len(systems)), yticklabels=systems)
        recolour(axes)
    axes.invert_yaxis()
    named = axes.get_legend_handles_labels()
    figure.legend(*named, loc="outside lower right", ncols=4, frameon=False, labelcolor=INK, fontsize=8)
    return finish_panels(figure, "", "", path, title)


def dots(
    axes: plt.Axes, runs: Sequence[dict[str, Any]], systems: Sequence[str], number: int, shift: float, goal: float
) -> None:
    """Every system's mean score at one share of layers saved, the `number`th of its points, or at full depth (0)."""
    for place, system in enumerate(systems):
        own = [run for run in runs if run["system"] == system]
        scores = [run["full"] if goal == 0 else (run["points"][number] or {}).get("score") for run in own]
        if not scores or None in scores:
            continue
        axes.errorbar(
            np.mean(scores), place + shift, xerr=np.std(scores, ddof=1) if len(scores) > 1 else 0, ms=3.5, lw=0.8,
            fmt="os^D"[number % 4], color=COLOURS[number % 4],
        )  # fmt: skip
    label = f"{100 * goal:.0f} % of layers saved" if goal else "full depth"
    axes.plot([], [], "os^D"[number % 4], color=COLOURS[number % 4], ms=3.5, label=label)


def finish(figure: plt.Figure, axes: plt.Axes, path: str | Path, title: str) -> Path:
    """Title, legend and file of a picture with one panel."""
    axes.set_title(title, color=INK, fontsize=10)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    recolour(axes)
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)
    return Path(path)


def finish_panels(figure: plt.Figure, across: str, up: str, path: str | Path, title: str) -> Path:
    """Title, common axis labels and file of a picture with several panels."""
    figure.supxlabel(across, color=INK, fontsize=10)
    figure.supylabel(up, color=INK, fontsize=10)
    figure.suptitle(title, color=INK, fontsize=10)
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)
    return Path(path)


def recolour(axes: plt.Axes) -> None:
    """Mid-grey ink and no box: readable in light and dark."""
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
