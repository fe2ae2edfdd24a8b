"""Markdown tables: their lines, and cells of what was measured beside what is printed."""

import numpy as np


def header(titles: list[str]) -> str:
    """Two lines of a Markdown table."""
    return line(titles) + "\n|" + "---|" + "---:|" * (len(titles) - 1)


def line(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def point_cell(found: list[dict | None], known: tuple[float, int] | None) -> str:
    """Ours, and what is printed."""
    paper = "" if known is None else f" ({known[0]} @ {known[1]} %)"
    if any(point is None for point in found):
        return "not reachable" + paper
    share = 100 * np.mean([point["saved"] for point in found])
    return f"{spread([100 * point['score'] for point in found], digits=1)} @ {share:.0f} %{paper}"


def spread(values: list[float], digits: int = 3) -> str:
    """Mean ± sample standard deviation; of one value the value alone."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean
