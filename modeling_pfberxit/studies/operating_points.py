"""Operating points of PF-BERxiT: the best setting of any rule for a speed-up, chosen on held-out rows."""

import json
from typing import Any

import numpy as np

from ..evaluation.calibration import Calibrated, all_points, calibrate
from ..evaluation.frontier import layer_scores
from ..evaluation.tables import header, line, spread
from ..model.configuration_pfberxit import PFBerxitConfig
from .paper_study import Study
from .trainings import Trained

SPEED_UPS = (1.25, 1.5, 2.0)


def points(study: Study, speed_ups: tuple[float, ...] = SPEED_UPS) -> str:
    """A table, one line per task, every seed with its own settings; these go to `points.json` in the folder."""
    names = [f"{speed_up:g}x" for speed_up in speed_ups]
    lines, found = [header(["", "majority", "full depth", *names, "seeds"])], {}
    for task in study.tasks:
        found[task] = [measure(config, kept, speed_ups) for config, kept in study.judged(task)]
        lines.append(task_line(task, found[task], names))
    text = json.dumps(found, indent=2) + "\n"
    (study.folder / "points.json").write_text(text, encoding="utf-8")
    return "\n".join(lines) + "\n\nScore @ layers saved, mean ± sd over seeds; * no better than the majority class."


def measure(config: PFBerxitConfig, kept: Trained, speed_ups: tuple[float, ...]) -> dict[str, Any]:
    """One model: its full-depth score, the majority's, and a point for every speed-up by layers."""
    metric = kept.metric
    tried = all_points(kept.chosen_on, metric)
    chosen = {
        f"{speed_up:g}x": calibrate(
            kept.chosen_on, kept.reported_on, metric, speed_up=speed_up, tried=tried, config=config
        )
        for speed_up in speed_ups
    }
    return {
        "metric": metric,
        "seed": kept.facts["run"]["seed"],
        "majority": kept.majority,
        "full": layer_scores(kept.reported_on, metric)[-1],
        "points": {name: as_dict(point) for name, point in chosen.items()},
    }


def as_dict(found: Calibrated) -> dict[str, Any]:
    """The policy, with score and shares saved on the rows it was chosen on (`chosen_...`) and on others."""
    chosen, reported = found.chosen, found.reported
    return {
        "policy": found.policy.stated(), "chosen_score": chosen.score, "chosen_saved": chosen.saved,
        "score": reported.score, "saved": reported.saved, "macs": reported.macs,
    }  # fmt: skip


def task_line(task: str, runs: list[dict[str, Any]], names: list[str]) -> str:
    """A task's line of the table."""
    majority = runs[0]["majority"]
    cells = [f"{majority:.3f}", starred([run["full"] for run in runs], majority)]
    for name in names:
        at = [run["points"][name] for run in runs]
        share = spread([100 * point["saved"] for point in at], digits=0)
        cells.append(f"{starred([point['score'] for point in at], majority)} @ {share} %")
    return line([f"{task} ({runs[0]['metric']})", *cells, str(len(runs))])


def starred(scores: list[float], majority: float) -> str:
    """Mean ± standard deviation, marked where it is no better than the majority class."""
    return spread(scores) + ("*" if np.mean(scores) <= majority else "")
