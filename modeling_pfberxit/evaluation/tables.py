"""Markdown tables, and cells of means over seeds beside the paper's numbers."""

from collections.abc import Iterable, Sequence

import numpy as np


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """A Markdown table; `align` as `header` takes it."""
    return "\n".join([header(titles, align), *map(line, rows)])


def header(titles: Sequence[str], align: str = "l") -> str:
    """The first two lines of a Markdown table, titles and alignment.

    Args:
        align: a letter for each of the first columns, `l`eft or `r`ight; all others are aligned to the right.
    """
    marks = {"l": "---|", "r": "---:|"}
    return line(titles) + "\n|" + "".join(marks[each] for each in align.ljust(len(titles), "r"))


def line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def point_cell(found: list[dict | None], known: tuple[float, int] | None) -> str:
    """The mean of points that were measured, and what the paper printed, (score, per cent of layers saved)."""
    paper = "" if known is None else f" ({known[0]} @ {known[1]} %)"
    reached = [point for point in found if point is not None]
    if len(reached) < len(found):
        return "not reachable" + paper
    share = 100 * np.mean([point["saved"] for point in reached])
    return f"{spread([100 * point['score'] for point in reached], digits=1)} @ {share:.0f} %{paper}"


def spread(values: list[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation; of one value the value alone."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean
