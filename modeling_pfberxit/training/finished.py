"""What is made of a trained model: settings chosen on rows it has not seen, and a folder that is ready to be pushed."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.tasks import Task
from ..evaluation import plots
from ..evaluation.frontier import Point, distinct_settings, frontier, grid, sweep, with_intervals
from ..evaluation.recording import Recording
from ..evaluation.settings import Setting
from ..model.exit_policy import ExitPolicy, configured_policy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .model_card import write_card

POINTS = {"careful": 0.25, "balanced": 0.4, "fast": 0.5}  # name -> share of the layers to save


def choose_policies(model: PFBerxitForSequenceClassification, chosen_on: Recording) -> dict[str, ExitPolicy]:
    """The model's own rule at each of `POINTS`, chosen on held-out rows, without names that no setting is left for."""
    found = distinct_settings(chosen_on, configured_policy(model.config), [*POINTS.values()])
    return {name: rounded(each) for name, each in zip(POINTS, found) if each is not None}


def rounded(policy: ExitPolicy) -> ExitPolicy:
    """The policy with a threshold of six digits, where that is one number."""
    single = isinstance(policy.threshold, float)
    return replace(policy, threshold=float(f"{policy.threshold:.6g}")) if single else policy


def own_frontier(model: PFBerxitForSequenceClassification, recording: Recording, metric: str) -> dict[str, list[Point]]:
    """The frontier of the model's own rule on recorded rows, by the rule's name."""
    policies = grid(recording, model.config.exit_criterion, configured_policy(model.config))
    points = frontier(sweep(recording, policies, metric, model.config))
    return {model.config.exit_criterion: with_intervals(points, recording, metric, resamples=200)}


def stored(setting: Setting, task: Task) -> dict:
    """An operating point as the config keeps it: the policy, with its measured score and share of layers saved."""
    return {
        **setting.policy.stated(),
        "dataset": task.dataset,
        "metric": task.metric,
        "score": round(setting.score, 4),
        "layers_saved": round(setting.saved, 4),
    }


def save(
    folder: Path, model: PFBerxitForSequenceClassification, task: Task, settings: list[Setting], recording: Recording,
    *, training: str, texts: list[str], groups: dict[str, np.ndarray], notes: str = "",
) -> None:  # fmt: skip
    """The model with its operating points, a card and, where rows exit early, two pictures, in a folder.

    Args:
        settings: full depth first, then the named points.
        recording: of the rows that `settings` were measured on.
        training: data, rows, epochs and seed, in words.
        texts: examples for the card.
        groups: executed layers of these rows at the middle setting, by a kind of rows.
    """
    middle, found = settings[len(settings) // 2], None
    model.config.operating_points = {each.name: stored(each, task) for each in settings[1:]}
    model.save_pretrained(folder)
    plots.exit_depths(groups, middle.layers, folder / "exit_depths.png", f"Exit depths at '{middle.name}'")
    if len(settings) > 1:
        found = own_frontier(model, recording, task.metric)
        title = f"{task.name}: one model, one seed"
        plots.frontiers(found, settings[0].score, task.metric, folder / "frontier.png", title)
    write_card(
        folder, model, task, settings, training=training,
        evaluation=f"its {task.evaluation_split} split, {len(recording)} rows",
        texts=texts, notes=notes, plot="exit_depths.png", frontier=found,
    )  # fmt: skip
