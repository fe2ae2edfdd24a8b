"""Pictures of what was measured. Every one of them has its numbers beside it in a table.

Figures are made without pyplot, so that importing this file leaves a notebook's backend and its figures alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; mid-grey is legible on light and on dark ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
INK = "#7f7f7f"
MARKERS = "os^D"
COLUMNS = 4  # of panels side by side


class Banded(Protocol):
    """A point of a frontier with the interval of its score."""

    @property
    def saved(self) -> float:
        """Share of layers saved."""

    @property
    def speed_up(self) -> float:
        """Layer speed-up."""

    @property
    def score(self) -> float:
        """Of the answers."""

    @property
    def low(self) -> float | None:
        """Lower end of the score's interval."""

    @property
    def high(self) -> float | None:
        """Upper end of the score's interval."""


class Timed(Protocol):
    """A measured case of the benchmark."""

    @property
    def batch(self) -> int:
        """Rows at once."""

    @property
    def case(self) -> str:
        """What was run."""

    @property
    def saved(self) -> float:
        """Share of layers saved."""

    @property
    def efficiency(self) -> float:
        """Wall-clock speed-up over layer speed-up."""


def exit_depths(groups: dict[str, np.ndarray], layers: int, path: str | Path, title: str) -> Path:
    """Share of rows that exited at each layer, grouped bars, as a PNG with a transparent ground."""
    figure, (axes,) = panels_of([""], (7, 3.2))
    width, places = 0.8 / len(groups), np.arange(1, layers + 1)
    for number, (name, depths) in enumerate(groups.items()):
        shares = [100 * float((depths == layer).mean()) for layer in places]
        offset = (number - (len(groups) - 1) / 2) * width
        colour = COLOURS[number % len(COLOURS)]
        axes.bar(places + offset, shares, width, color=colour, label=f"{name} (mean {depths.mean():.2f})")
    axes.set(xlabel="layer at which the row left", ylabel="rows (%)", xticks=places)
    return finish(figure, axes, path, title)


def frontiers(found: Mapping[str, Sequence[Banded]], full: float, metric: str, path: str | Path, title: str) -> Path:
    """Score over layers saved, a panel per criterion with its 95 % band, the others behind it; dotted: full depth."""
    size = (10, 2.4 * lines_of(found)) if len(found) > 1 else (7, 3.2)
    figure, panels = panels_of(found, size, sharex=True, sharey=True)
    for axes, name in zip(panels, found):
        axes.axhline(full, color=INK, linestyle=":", linewidth=1)
        for points in found.values():
            axes.plot([100 * p.saved for p in points], [p.score for p in points], color=INK, lw=0.6, alpha=0.35)
        points = found[name]
        saved = [100 * point.saved for point in points]
        low, high = np.array([(point.low, point.high) for point in points], dtype=float).T
        axes.fill_between(saved, low, high, color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(saved, [point.score for point in points], "o-", color=COLOURS[0], ms=3, lw=1.5)
    return finish_panels(figure, "layers saved (%)", metric, path, title)


def curves(
    found: Mapping[str, dict[str, tuple[np.ndarray, np.ndarray]]], across: str, path: str | Path, title: str,
    up: str = "score",
) -> Path:  # fmt: skip
    """A panel per task, a line per variant: x (k,) and scores (seeds, k), their mean with the range over seeds."""
    figure, panels = panels_of(found, (1 + 3.2 * min(COLUMNS, len(found)), 2.8 * lines_of(found)))
    for axes, task in zip(panels, found):
        for number, (name, (places, scores)) in enumerate(found[task].items()):
            colour, marker = style(number)
            axes.plot(places, scores.mean(0), marker + "-", color=colour, ms=3, lw=1.3, label=name)
            axes.fill_between(places, scores.min(0), scores.max(0), color=colour, alpha=0.15, lw=0)
    named = panels[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside right center", frameon=False, labelcolor=INK, fontsize=8)
    return finish_panels(figure, across, up, path, title)


def efficiencies(lines: Sequence[Timed], path: str | Path, title: str) -> Path:
    """Efficiency over layers saved, a panel per batch size, a line per case that saves any; dotted: 1."""
    ours = [line for line in lines if line.saved > 0]
    batches = sorted({line.batch for line in ours})
    cases = [*sorted({line.case for line in ours if not line.case.startswith("first")}), "first k layers"]
    figure, panels = panels_of([f"batch {batch}" for batch in batches], (1 + 3.4 * len(batches), 3.4), sharey=True)
    for axes, batch in zip(panels, batches):
        axes.axhline(1.0, color=INK, linestyle=":", linewidth=1)
        of_batch = [line for line in ours if line.batch == batch]
        for number, case in enumerate(cases):
            places, means = mean_efficiency(line for line in of_batch if of_case(line, case))
            colour, marker = style(number)
            axes.plot([100 * place for place in places], means, marker + "-", color=colour, ms=4, lw=1.3, label=case)
    named = panels[-1].get_legend_handles_labels()
    figure.legend(*named, loc="outside right center", frameon=False, labelcolor=INK, fontsize=8)
    return finish_panels(figure, "layers saved (%)", "wall-clock speed-up / layer speed-up", path, title)


def of_case(line: Timed, case: str) -> bool:
    """Whether a line belongs to a case; truncations ("first 6 layers") are one case, whatever their depth."""
    return line.case.startswith("first") if case.startswith("first") else line.case == case


def mean_efficiency(lines: Iterable[Timed]) -> tuple[list[float], list[float]]:
    """The shares of layers saved, to two digits, and the mean efficiency at each."""
    by_share: dict[float, list[float]] = {}
    for line in lines:
        by_share.setdefault(round(line.saved, 2), []).append(line.efficiency)
    return sorted(by_share), [float(np.mean(by_share[place])) for place in sorted(by_share)]


def comparison(
    found: Mapping[str, Sequence[dict[str, Any]]], goals: Sequence[float], path: str | Path, title: str
) -> Path:
    """A panel per task, a line per system: mean scores at shares of layers saved and at full depth, with their sd.

    Args:
        found: by the panel's name, results of `compare`, one for each system and seed; dotted: the majority class.
    """
    systems = list(dict.fromkeys(each["system"] for results in found.values() for each in results))
    size = (1.5 + 2.6 * len(found), 1.2 + 0.27 * len(systems))
    figure, panels = panels_of(found, size, columns=len(found), sharey=True)
    for axes, of_task in zip(panels, found.values()):
        axes.axvline(np.mean([each["majority"] for each in of_task]), color=INK, ls=":", lw=1)
        for number, goal in enumerate([*goals, 0]):
            dots(axes, of_task, systems, number, (number - len(goals) / 2) * 0.16, goal)
        axes.set(xlabel=of_task[0]["metric"], yticks=range(len(systems)), yticklabels=systems)
    panels[-1].invert_yaxis()  # shared, so all are turned: the first system on top
    named = panels[-1].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower right", ncols=4, frameon=False, labelcolor=INK, fontsize=8)
    return finish_panels(figure, "", "", path, title)


def dots(
    axes: Axes, runs: Sequence[dict[str, Any]], systems: Sequence[str], number: int, shift: float, goal: float
) -> None:
    """Every system's mean score at one share of layers saved, the `number`th of its points, or at full depth (0)."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    for place, system in enumerate(systems):
        own = [run for run in runs if run["system"] == system]
        found = [{"score": run["full"]} if goal == 0 else run["points"][number] for run in own]
        if not found or None in found:
            continue
        scores = [point["score"] for point in found]
        axes.errorbar(
            np.mean(scores), place + shift, xerr=np.std(scores, ddof=1) if len(scores) > 1 else 0, ms=3.5, lw=0.8,
            fmt=marker, color=colour,
        )  # fmt: skip
    label = f"{100 * goal:.0f} % of layers saved" if goal else "full depth"
    axes.plot([], [], marker, color=colour, ms=3.5, label=label)


def differences(found: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, title: str) -> Path:
    """A panel per task: of every variant the mean difference and its interval, [mean, low, high]; dotted: none."""
    names = list(dict.fromkeys(name for of_task in found.values() for name in of_task))
    size = (2.4 + 2.4 * len(found), 1.2 + 0.24 * len(names))
    figure, panels = panels_of(found, size, len(found), sharey=True)
    for axes, of_task in zip(panels, found.values()):
        axes.axvline(0, color=INK, ls=":", lw=1)
        for name, (mean, low, high) in of_task.items():
            around = [[100 * (mean - low)], [100 * (high - mean)]]
            axes.errorbar(100 * mean, names.index(name), xerr=around, fmt="o", ms=3.5, lw=0.8, color=COLOURS[0])
        axes.set(yticks=range(len(names)), yticklabels=names)
    panels[-1].invert_yaxis()  # shared: the first variant on top
    return finish_panels(figure, "points", "", path, title)


# ---- panels ---------------------------------------------------------------------------------------------------------


def lines_of(names: Iterable[str], columns: int = COLUMNS) -> int:
    """How many lines of panels the names take."""
    return -(-len(list(names)) // columns)


def panels_of(
    names: Iterable[str], size: tuple[float, float], columns: int = COLUMNS, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with a titled panel for each name, filled line by line."""
    names = list(names)
    columns, figure = min(columns, len(names)), Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines_of(names, columns), columns, squeeze=False, sharex=sharex, sharey=sharey)
    panels = list(grid.flat)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels, names):
        axes.set_title(name, color=INK, fontsize=9)
        recolour(axes)
    return figure, panels[: len(names)]


def style(number: int) -> tuple[str, str]:
    """Colour and marker of the `number`th line of a panel; no two alike among the first sixteen."""
    return COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]


def finish(figure: Figure, axes: Axes, path: str | Path, title: str) -> Path:
    """Title, legend and file of a picture with one panel."""
    axes.set_title(title, color=INK, fontsize=10)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    figure.savefig(path, dpi=150, transparent=True)
    return Path(path)


def finish_panels(figure: Figure, across: str, up: str, path: str | Path, title: str) -> Path:
    """Title, common axis labels and file of a picture with several panels."""
    figure.supxlabel(across, color=INK, fontsize=10)
    figure.supylabel(up, color=INK, fontsize=10)
    figure.suptitle(title, color=INK, fontsize=10)
    figure.savefig(path, dpi=150, transparent=True)
    return Path(path)


def recolour(axes: Axes) -> None:
    """Mid-grey ink and no box: readable in light and dark."""
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
