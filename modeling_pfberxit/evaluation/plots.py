"""Pictures of what was measured. Every one of them has its numbers beside it in a table."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend must be chosen first

# Okabe and Ito's colours, told apart by colour-blind readers; mid-grey text reads on light and on dark ground.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
INK = "#7f7f7f"


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
    axes.set_title(title, color=INK, fontsize=10)
    axes.legend(frameon=False, labelcolor=INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)
    return Path(path)
