"""The comparison's results: every system's scores at full depth and at shares of layers saved, and their table."""

import math
from typing import Any

import numpy as np

from ..data.metrics import majority_in_words
from ..evaluation.frontier import Point, grid, judging, layer_scores, sweep
from ..evaluation.tables import spread, table
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import FULL_DEPTH, ExitPolicy, configured_policy
from .results import group
from .trainings import Trained

ABOUT = 0.09  # a point this far from the share asked for still counts: half a layer of six
NEAR = 0.02  # settings this close to the nearest one compete by their held-out score


def measure(system: str, config: PFBerxitConfig, kept: Trained, goals: list[float]) -> dict[str, Any]:
    """A system's scores: of every exit, of the last, and at the shares of layers to save.

    Settings of the system's rule (threshold and patience) are chosen on held-out rows, and reported on the others.
    """
    facts, layers = kept.facts, layer_scores(kept.reported_on, kept.metric)
    return {
        "system": system,
        "task": facts["task"],
        "metric": kept.metric,
        "seed": facts["run"]["seed"],
        "majority": kept.majority,
        "layers": layers,
        "exit_depths": kept.reported_on.exit_depths,
        "full": layers[-1],
        "average": float(np.mean(layers)),
        "judged": judged(config, kept),
        "points": points(config, kept, goals),
        **{name: facts[name] for name in ("train_rows", "seconds", "steps")},
        "run": facts["run"],
    }


def judged(config: PFBerxitConfig, kept: Trained) -> bool:
    """Whether the system's rule can judge the task's answers; where tokens exit, none needs to."""
    return kept.facts["token_layers"] is not None or config.exit_criterion in judging(kept.chosen_on)


def points(config: PFBerxitConfig, kept: Trained, goals: list[float]) -> list[dict[str, Any] | None]:
    """One for each share of layers to save; None where the rule cannot judge the task or no setting is near."""
    if kept.facts["token_layers"] is not None:  # tokens exit, after layers that were fixed before training
        saved = 1 - kept.facts["token_layers"] / kept.reported_on.layers
        (full,) = sweep(kept.reported_on, [FULL_DEPTH], kept.metric)
        point = {"saved": saved, "score": full.score, "macs_saved": kept.facts["macs_saved"]}
        return [point if abs(saved - goal) <= ABOUT else None for goal in goals]
    if not judged(config, kept):
        return [None for _ in goals]
    policies = grid(kept.chosen_on, config.exit_criterion, configured_policy(config), steps=60)
    tried = sweep(kept.chosen_on, policies, kept.metric)
    return [point_near(goal, tried, kept) for goal in goals]


def point_near(goal: float, tried: list[Point], kept: Trained) -> dict[str, Any] | None:
    """The setting near the share asked for, on the reported rows."""
    policy = setting_near(goal, tried)
    if policy is None:
        return None
    (point,) = sweep(kept.reported_on, [policy], kept.metric)
    return {"goal": goal, "saved": point.saved, "score": point.score, **policy.stated()}


def setting_near(goal: float, tried: list[Point]) -> ExitPolicy | None:
    """The policy that scored best among those nearest to the share of layers to save; None where none is near."""
    nearest = min((abs(point.saved - goal) for point in tried), default=math.inf)
    if nearest > ABOUT:
        return None
    near = [point for point in tried if abs(point.saved - goal) <= nearest + NEAR]
    return max(near, key=lambda point: point.score).policy


# ---- the table ------------------------------------------------------------------------------------------------------


def as_markdown(results: list[dict[str, Any]], goals: list[float]) -> str:
    """A table per task, encoder and budget: cross-layer average, full depth and points, mean ± sd over seeds.

    A full depth no better than the majority class is marked with *.
    """
    tables = []
    for of in dict.fromkeys(map(group, results)):
        of_task = [result for result in results if group(result) == of]
        titles = ["system", "average of exits", "full depth", *(f"{100 * goal:.0f} % saved" for goal in goals), "seeds"]
        rows = [
            system_row([result for result in of_task if result["system"] == system], goals)
            for system in dict.fromkeys(result["system"] for result in of_task)
        ]
        tables.append(f"{task_title(of_task[0])}\n\n{table(titles, rows)}")
    return "\n\n".join(tables)


def task_title(result: dict[str, Any]) -> str:
    """The table's title: task, metric, training and encoder."""
    budget = result["run"]["budget"]
    return (
        f"**{result['task']}** ({result['metric']}; {majority_in_words(result['metric'], result['majority'])}; "
        f"{result['train_rows']:,} training rows, {budget['epochs']:g} epochs; {result['run']['backbone']})"
    )


def system_row(runs: list[dict[str, Any]], goals: list[float]) -> list[str]:
    """The cells of a system's line."""
    full, majority = [run["full"] for run in runs], float(np.mean([run["majority"] for run in runs]))
    star = "*" if np.mean(full) <= majority else ""
    cells = [spread([run["average"] for run in runs]), spread(full) + star]
    for number in range(len(goals)):
        at = [run["points"][number] for run in runs]
        if any(point is None for point in at):
            cells.append("not reachable" if all(run.get("judged", True) for run in runs) else "cannot judge")
            continue
        share = 100 * np.mean([point["saved"] for point in at])
        cells.append(f"{spread([point['score'] for point in at])} @ {share:.0f} %")
    return [runs[0]["system"], *cells, str(len(runs))]
