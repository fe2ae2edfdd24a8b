"""The tables and figures of PF-BERxiT's paper, ours beside the printed values.

Every table is a set of variants, each trained once per task and seed and kept, as in `compare`; a training that several
tables need is shared. `frontiers` and `points` go beyond the paper: the scores of every rule on its model. `retrofits`
and `texts` have nothing of it but the folder of trainings: classifiers that one has, made faster without labels.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.frontier import layer_scores
from ..evaluation.plots import curves
from ..evaluation.tables import header, line, point_cell, spread
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from . import gap, operating_points, paper_values, retrofits
from .batch_sizes import GOALS, table6
from .comparison_table import points
from .paper_study import DIMENSIONS, PLACEMENTS, RULES, VARIANTS, Study
from .presets import ENCODERS, PAPER
from .seed_bands import SHARES, along, frontiers
from .trainings import Trained

# ---- tables ---------------------------------------------------------------------------------------------------------


def averages(study: Study, variants: dict[str, dict], expected: dict[Any, tuple], columns: Iterable[str]) -> str:
    """Tables 1, 3 and 4: the average over the exits, printed value beside it."""
    columns = list(columns)
    lines = [header(["", *study.tasks])]
    for (name, knobs), values in zip(variants.items(), expected.values(), strict=True):
        cells = []
        for task in study.tasks:
            found = [average(kept) for _, kept in study.models(knobs, task)]
            known = f" ({values[columns.index(task)]:.2f})" if task in columns else ""
            cells.append(spread([100 * value for value in found], digits=2) + known)
        lines.append(line([name, *cells]))
    return "\n".join(lines)


def average(kept: Trained) -> float:
    """The mean score over all exits."""
    return float(np.mean(layer_scores(kept.reported_on, kept.metric)))


def table2(study: Study) -> str:
    """Parameters at ALBERT-base's shape, counted on the meta device; needs no training."""
    lines = [header(["", "all", "printed", "adapters, or all", "printed"])]
    for name, (everything, tuned, _) in paper_values.PARAMETERS.items():
        total, adapters = count_parameters(name)
        lines.append(line([name, f"{total:,}", f"{everything:,}", f"{adapters or total:,}", f"{tuned:,}"]))
    return "\n".join(lines)


def count_parameters(name: str) -> tuple[int, int]:
    """All parameters and those of adapters, of a model of Table 2 or of ALBERT alone."""
    knobs: dict[str, Any] = (
        {**PAPER, "adapter_sublearner": name[3:]} if name.startswith("pf-") else {"system": name, "lte_shared": False}
    )
    if name == "albert":
        knobs = {"system": "pabee"}
    with torch.device("meta"):
        config = PFBerxitConfig.from_backbone(ENCODERS["albert/albert-base-v2"], **knobs)
        model = PFBerxitForSequenceClassification(config)
    counted = model.backbone if name == "albert" else model
    adapters = sum(p.numel() for key, p in counted.named_parameters() if "adapter" in key)
    return sum(p.numel() for p in counted.parameters()), adapters


def table5(study: Study, goals: tuple[float, ...] = GOALS) -> str:
    """Scores at shares of layers saved, thresholds chosen on held-out rows; (printed score @ printed share)."""
    lines = [header(["", *(f"{task} {100 * goal:.0f} %" for task in study.tasks for goal in goals)])]
    for name, knobs in RULES.items():
        cells = []
        for task in study.tasks:
            found = [points(config, kept, list(goals)) for config, kept in study.models(knobs, task)]
            known = paper_values.EXITS[name].get(task)
            for number in range(len(goals)):
                cells.append(point_cell([each[number] for each in found], known and known[number]))
        lines.append(line([name, *cells]))
    return "\n".join(lines)


# ---- figures --------------------------------------------------------------------------------------------------------


def layer_curves(study: Study, variants: dict[str, dict], path: Path, title: str) -> str:
    """Figures 2 and 3: the score of every exit, mean over seeds with their range."""
    found = {
        task: {name: np.array([
            layer_scores(kept.reported_on, kept.metric) for _, kept in study.models(knobs, task)
        ]) for name, knobs in variants.items()}
        for task in study.tasks
    }  # fmt: skip
    curves({task: {name: (np.arange(1, rows.shape[1] + 1), rows) for name, rows in lines.items()}
            for task, lines in found.items()}, "exit after layer", path, title)  # fmt: skip
    lines = [header(["", "task", *map(str, range(1, next(iter(found[study.tasks[0]].values())).shape[1] + 1))])]
    for task, by_name in found.items():
        for name, rows in by_name.items():
            lines.append(line([name, task, *(f"{value:.3f}" for value in rows.mean(0))]))
    return "\n".join(lines)


def speed_curves(study: Study, variants: dict[str, dict], path: Path, title: str) -> str:
    """Figures 4 and 5: the best held-out settings' score over layers saved, mean over seeds with their range."""
    found = {
        task: {name: (100 * SHARES, np.array([
            along(config, kept, SHARES) for config, kept in study.models(knobs, task)
        ])) for name, knobs in variants.items()}
        for task in study.tasks
    }  # fmt: skip
    curves(found, "layers saved (%)", path, title)
    lines = [header(["", "task", *(f"{100 * share:.0f} %" for share in SHARES)])]
    for task, by_name in found.items():
        for name, (_, rows) in by_name.items():
            cells = ["" if np.isnan(value) else f"{value:.3f}" for value in rows.mean(0)]
            lines.append(line([name, task, *cells]))
    return "\n".join(lines)


# ---- all of them ----------------------------------------------------------------------------------------------------

DIVERGENCES = {name: {"exit_divergence": name} for name in ("kl", "rekl", "bikl")}
FIGURE_4 = {name: RULES[name] for name in ("pabee", "berxit", "pf-mlp")}
STRATEGIES = {name: VARIANTS[name] for name in ("joint", "alternating", "two-stage", "berxit", "pf-mlp")}
MODULES = {name: knobs for name, knobs in VARIANTS.items() if name.startswith("pf-")}
ITEMS = {
    "table1": lambda study: averages(study, VARIANTS, paper_values.AVERAGES, paper_values.TASKS),
    "table2": table2,
    "table3": lambda study: averages(study, DIMENSIONS, paper_values.BY_DIMENSION, paper_values.ABLATED),
    "table4": lambda study: averages(study, PLACEMENTS, paper_values.BY_PLACEMENT, paper_values.ABLATED),
    "table5": table5,
    "table6": table6,
    "figure2": lambda study: layer_curves(study, STRATEGIES, study.folder / "figure2.png", "Training strategies"),
    "figure3": lambda study: layer_curves(study, MODULES, study.folder / "figure3.png", "Sub-learning modules"),
    "figure4": lambda study: speed_curves(study, FIGURE_4, study.folder / "figure4.png", "Exit rules"),
    "figure5": lambda study: speed_curves(study, DIVERGENCES, study.folder / "figure5.png", "Divergences"),
    "frontiers": frontiers,
    "points": operating_points.points,
    "gap": lambda study: gap.gap(study, gap.chosen(study.variants), "gap"),
    "retrofits": retrofits.retrofits,
    "texts": retrofits.texts,
    "speed": retrofits.speed,
}


def reproduce(items: list[str], study: Study) -> Iterator[tuple[str, str]]:
    """Yield tables and figures, name and text, and write them to the study's folder as they are finished.

    Raises:
        ValueError: an unknown name, or variants that no item reads, before anything is trained.
    """
    if unknown := [item for item in items if item not in ITEMS]:
        refuse("items", unknown, f"among {', '.join(ITEMS)}")
    if study.variants and "gap" not in items:
        refuse("variants", list(study.variants), "left out without gap, which alone reads them")
    gap.chosen(study.variants)
    for item in items:
        text = ITEMS[item](study)
        study.folder.mkdir(parents=True, exist_ok=True)
        (study.folder / f"{item}.md").write_text(text + "\n", encoding="utf-8")
        yield item, text
