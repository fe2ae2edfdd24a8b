"""The layer table: what every exit scores, frozen encoder beside trained one, and what is left when rows leave early.

One model per task, mode and seed. Thresholds are chosen on rows held out of the training split, and reported on the
evaluation split. Every finished run is kept as JSON, so a table that was interrupted goes on where it stopped.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from ..evidence import REGRESSION
from ..exit_policy import ExitPolicy
from ..training.finetuning import new_model, new_tokenizer, new_trainer, training_arguments
from ..training.metrics import majority_score, score
from ..training.tasks import Task, encode, load_task
from .frontier import sweep, thresholds_for
from .recording import Recording, record

# All weights trained is the field's usual setting: no adapters, the encoder itself moves.
MODES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "trained": {"train_backbone": True, "adapter_placement": "none"},
}


@dataclass(frozen=True)
class Budget:
    """What one run may spend: `rows` of the training split (0: all) for `epochs`; `held_out` rows choose thresholds.

    Without the encoder's `dropout` a step on CPU takes six tenths of the time.
    """

    rows: int = 0
    epochs: float = 5
    held_out: int = 500
    batch_size: int = 32
    dropout: bool = True


def run(
    dataset: str, config: str, mode: str, seed: int, backbone: str, budget: Budget, saved: list[float], knobs: dict
) -> dict:
    """Train one model and measure it: scores of all exits, and at thresholds that save given shares of the layers.

    Args:
        knobs: fields of the model's config to set, beside the mode's own.
    """
    task, data = load_task(dataset, config)
    tokenizer = new_tokenizer(backbone)
    train = data["train"].shuffle(seed=seed)
    held_out = encode(task, train.select(range(budget.held_out)), tokenizer)
    end = min(len(train), budget.held_out + budget.rows) if budget.rows else len(train)
    train = encode(task, train.select(range(budget.held_out, end)), tokenizer)
    evaluation = encode(task, data[task.evaluation_split], tokenizer)

    set_seed(seed)
    model = new_model(backbone, task, **{**MODES[mode], **knobs})
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(
            scratch,
            train_backbone=model.config.train_backbone,
            num_train_epochs=budget.epochs,
            per_device_train_batch_size=budget.batch_size,
            seed=seed,
        )
        trainer = new_trainer(model, task, tokenizer, arguments, train)
        trainer.train()
        model.eval()
        chosen_on, reported_on = record(model, held_out), record(model, evaluation)
    return {
        "task": task.name,
        "mode": " ".join([mode, *map(str, knobs.values())]),
        "seed": seed,
        "metric": task.metric,
        "train_rows": len(train),
        "epochs": budget.epochs,
        "evaluation_rows": len(evaluation),
        "majority": majority_score(task.metric, reported_on.labels.numpy()),
        "layers": layer_scores(reported_on, task.metric),
        "points": exit_points(task, chosen_on, reported_on, saved),
    }


def layer_scores(recording: Recording, metric: str) -> list[float]:
    """The score of every exit, shallowest first."""
    labels = recording.labels.numpy()
    return [score(metric, logits.numpy(), labels) for logits in recording.evidence.logits.unbind(1)]


def exit_points(task: Task, chosen_on: Recording, reported_on: Recording, saved: list[float]) -> list[dict]:
    """Divergence (regression: distance of values) with patience 1, at the thresholds that save the shares asked for."""
    policy = ExitPolicy(criterion="patience" if task.problem_type == REGRESSION else "divergence_v1", patience=1)
    policies = [replace(policy, threshold=tau) for tau in thresholds_for(chosen_on, policy, saved)]
    points = sweep(reported_on, policies, task.metric)
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
