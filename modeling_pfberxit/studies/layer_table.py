"""The layer table: the score of every exit, with a frozen and with a trained encoder, and at three early-exit settings.

One model per task, mode and seed. Thresholds are chosen on rows held out of the training split, and reported on the
evaluation split. Every training is kept, so a table that was interrupted goes on where it stopped.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.frontier import layer_scores, settings_for, sweep
from ..evaluation.recording import Recording
from ..evaluation.tables import header, line
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.criteria import able
from ..model.exit_policy import ExitPolicy
from .runs import Run
from .trainings import Trained, trained

# Training all weights, without adapters, is the field's usual setting.
MODES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "trained": {"train_backbone": True, "adapter_placement": "none"},
}


def measured(
    folder: Path, run: Run, mode: str, knobs: dict[str, Any], saved: list[float], say: Callable[[str], None]
) -> dict[str, Any]:
    """A line of the table for one seed, from a model that `folder` keeps or that is trained now.

    Args:
        knobs: further fields of the model's config to set.
        saved: the shares of layers to save.
        say: called with a line if it is trained.
    """
    config = PFBerxitConfig.from_backbone(run.backbone, **{**MODES[mode], **knobs})
    return measure(trained(folder, run, config, say), " ".join([mode, *map(str, knobs.values())]), saved)


def measure(kept: Trained, mode: str, saved: list[float]) -> dict[str, Any]:
    """Scores of all exits on the reported rows, and at the thresholds that save given shares of the layers."""
    return {
        **{name: kept.facts[name] for name in ("task", "metric", "train_rows", "run")},
        "mode": mode,
        "evaluation_rows": len(kept.reported_on),
        "majority": kept.majority,
        "layers": layer_scores(kept.reported_on, kept.metric),
        "points": exit_points(kept.chosen_on, kept.reported_on, kept.metric, saved),
    }


def exit_points(chosen_on: Recording, reported_on: Recording, metric: str, saved: list[float]) -> list[dict]:
    """Divergence (regression: distance of values) with patience 1, at the thresholds that save the shares asked for."""
    policy = ExitPolicy(able(chosen_on.problem_type)[0], patience=1)
    points = sweep(reported_on, settings_for(chosen_on, policy, saved), metric)
    return [{"threshold": each.policy.threshold, "saved": each.saved, "score": each.score} for each in points]


def as_markdown(results: list[dict]) -> str:
    """One line per task and mode, mean over seeds; an exit no better than the majority class is marked with *."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result["task"], result["mode"]), []).append(result)
    exits, points = (len(results[0][name]) for name in ("layers", "points"))
    numbered = [*(f"{i}" for i in range(1, exits + 1)), *(f"exit {i}" for i in range(1, points + 1))]
    lines = [header(["task", "encoder", "majority", *numbered])]
    for (task, mode), runs in groups.items():
        majority = float(np.mean([run["majority"] for run in runs]))
        layers = np.mean([run["layers"] for run in runs], axis=0)
        cells = [f"{value:.3f}" + ("*" if value <= majority else "") for value in layers]
        for number in range(points):
            at = [run["points"][number] for run in runs]
            value, share = (np.mean([point[key] for point in at]) for key in ("score", "saved"))
            cells.append(f"{value:.3f} @ {100 * share:.0f} %")
        lines.append(line([task, mode, f"{majority:.3f}", *cells]))
    return "\n".join(lines)
