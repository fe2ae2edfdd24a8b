"""The layer table: what every exit scores, frozen encoder beside trained one, and what is left when rows leave early.

One model per task, mode and seed. Thresholds are chosen on rows held out of the training split, and reported on the
evaluation split. Every finished run is kept as JSON, so a table that was interrupted goes on where it stopped.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.metrics import majority_score
from ..evaluation.frontier import layer_scores, sweep, thresholds_for
from ..evaluation.recording import Recording
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import REGRESSION
from ..model.exit_policy import ExitPolicy
from .comparison import Budget, Run, train_and_record

# All weights trained is the field's usual setting: no adapters, the encoder itself moves.
MODES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "trained": {"train_backbone": True, "adapter_placement": "none"},
}


def run(
    dataset: str, config: str, mode: str, seed: int, backbone: str, budget: Budget, saved: list[float], knobs: dict
) -> dict:
    """Train one model and measure it: scores of all exits, and at thresholds that save given shares of the layers.

    Args:
        knobs: fields of the model's config to set, beside the mode's own.
    """
    model_config = PFBerxitConfig.from_backbone(backbone, **{**MODES[mode], **knobs})
    chosen_on, reported_on = train_and_record(Run(dataset, config, seed, backbone, budget), model_config)
    facts, labels = reported_on.source, reported_on.labels.numpy()
    return {
        "task": facts["task"],
        "mode": " ".join([mode, *map(str, knobs.values())]),
        "seed": seed,
        "metric": facts["metric"],
        "train_rows": facts["train_rows"],
        "epochs": budget.epochs,
        "evaluation_rows": len(labels),
        "majority": majority_score(facts["metric"], labels),
        "layers": layer_scores(reported_on, facts["metric"]),
        "points": exit_points(chosen_on, reported_on, facts["metric"], saved),
    }


def exit_points(chosen_on: Recording, reported_on: Recording, metric: str, saved: list[float]) -> list[dict]:
    """Divergence (regression: distance of values) with patience 1, at the thresholds that save the shares asked for."""
    policy = ExitPolicy(criterion="patience" if chosen_on.problem_type == REGRESSION else "divergence_v1", patience=1)
    policies = [replace(policy, threshold=tau) for tau in thresholds_for(chosen_on, policy, saved)]
    points = sweep(reported_on, policies, metric)
    return [{"threshold": each.policy.threshold, "saved": each.saved, "score": each.score} for each in points]


def cached_run(folder: Path, **setting: Any) -> dict:
    """`run`, or its result from an earlier call with the same setting."""
    parts = [setting["config"], setting["mode"], *map(str, setting["knobs"].values()), f"seed{setting['seed']}"]
    path = folder / ("-".join(map(str, parts)) + ".json")
    asked = {
        "backbone": Path(setting["backbone"]).name,
        "budget": vars(setting["budget"]),
        "saved": setting["saved"],
        "knobs": setting["knobs"],
    }
    if path.exists() and (known := json.loads(path.read_text())).get("setting") == asked:
        return known
    print(f"training {setting['mode']} on {setting['config']}, seed {setting['seed']} ...", flush=True)
    result = {**run(**setting), "setting": asked}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def as_markdown(results: list[dict]) -> str:
    """One line per task and mode, mean over seeds; an exit no better than the majority class is marked with *."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for result in results:
        groups.setdefault((result["task"], result["mode"]), []).append(result)
    first = results[0]
    exits, points = len(first["layers"]), len(first["points"])
    titles = [
        "task",
        "encoder",
        "majority",
        *(f"{i}" for i in range(1, exits + 1)),
        *(f"exit {i}" for i in range(1, points + 1)),
    ]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for (task, mode), runs in groups.items():
        majority = float(np.mean([run["majority"] for run in runs]))
        layers = np.mean([run["layers"] for run in runs], axis=0)
        cells = [f"{value:.3f}" + ("*" if value <= majority else "") for value in layers]
        for number in range(points):
            at = [run["points"][number] for run in runs]
            value, share = (np.mean([point[key] for point in at]) for key in ("score", "saved"))
            cells.append(f"{value:.3f} @ {100 * share:.0f} %")
        lines.append("| " + " | ".join([task, mode, f"{majority:.3f}", *cells]) + " |")
    return "\n".join(lines)
