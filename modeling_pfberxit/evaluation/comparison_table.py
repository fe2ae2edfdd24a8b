"""The comparison's results: what every system scores in full and at given shares of layers saved."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from ..configuration_pfberxit import PFBerxitConfig
from ..criteria import CRITERIA
from ..exit_policy import ExitPolicy, configured_policy
from ..training.metrics import majority_score, score
from .comparison import Recording
from .replay import candidate_thresholds, replay

ABOUT = 0.09  # a point this far from the share asked for still counts: half a layer of six
NEAR = 0.02  # settings this close to the nearest one compete by their held-out score
PATIENCE = (1, 2, 3)


def measure(system: str, config: PFBerxitConfig, kept: Recording, goals: list[float]) -> dict[str, Any]:
    """A system's scores: of every exit, of the last, and at the shares of layers to save.

    Settings of the system's rule (threshold and patience) are chosen on held-out rows, and reported on the others.
    """
    facts, (evidence, labels) = kept.facts, kept.reported_on
    metric, targets = facts["metric"], labels.numpy()
    layers = [score(metric, logits.numpy(), targets) for logits in evidence.logits.unbind(1)]
    return {
        "system": system,
        "task": facts["task"],
        "metric": metric,
        "seed": facts["run"]["seed"],
        "majority": majority_score(metric, targets),
        "layers": layers,
        "exit_depths": facts["exit_depths"],
        "full": layers[-1],
        "average": float(np.mean(layers)),
        "points": points(config, kept, goals),
        **{name: facts[name] for name in ("train_rows", "seconds", "steps", "run")},
    }


def points(config: PFBerxitConfig, kept: Recording, goals: list[float]) -> list[dict[str, Any] | None]:
    """One for each share of layers to save; None where the system's rule comes nowhere near."""
    if kept.facts["token_layers"] is not None:  # tokens leave on their own, where they were told before training
        saved = 1 - kept.facts["token_layers"] / kept.facts["layers"]
        full = score(kept.facts["metric"], kept.reported_on[0].logits[:, -1].numpy(), kept.reported_on[1].numpy())
        point = {"saved": saved, "score": full, "macs_saved": kept.facts["macs_saved"]}
        return [point if abs(saved - goal) <= ABOUT else None for goal in goals]
    tried = [
        (*outcome(policy, kept, held_out=True), policy)
        for policy in settings(config, kept)
    ]  # fmt: skip
    return [point_near(goal, tried, kept) for goal in goals]


def point_near(goal: float, tried: list[tuple[float, float, ExitPolicy]], kept: Recording) -> dict[str, Any] | None:
    """The setting that did best on held-out rows among those nearest to the share asked for, on the reported rows."""
    nearest = min((abs(saved - goal) for saved, _, _ in tried), default=1.0)
    if nearest > ABOUT:
        return None
    _, _, policy = max((each for each in tried if abs(each[0] - goal) <= nearest + NEAR), key=lambda each: each[1])
    saved, value = outcome(policy, kept, held_out=False)
    fields = ("criterion", "threshold", "patience", "window", "appointed_layer")
    chosen = {name: getattr(policy, name) for name in fields}
    return {"goal": goal, "saved": saved, "score": value, **chosen}


def outcome(policy: ExitPolicy, kept: Recording, held_out: bool) -> tuple[float, float]:
    """The share of layers a policy saves on recorded rows, and its score there."""
    facts, (evidence, labels) = kept.facts, kept.chosen_on if held_out else kept.reported_on
    answers, depths = replay(evidence, policy, facts["exit_depths"], facts["problem_type"])
    return 1 - depths.float().mean().item() / facts["layers"], score(facts["metric"], answers.numpy(), labels.numpy())


def settings(config: PFBerxitConfig, kept: Recording) -> Iterator[ExitPolicy]:
    """The settings of a system's rule that are tried: thresholds that occur, patience 1 to 3, or layers."""
    policy, (evidence, _) = configured_policy(config), kept.chosen_on
    if policy.criterion is None:
        return
    if policy.criterion == "appointed":
        yield from (replace(policy, appointed_layer=depth) for depth in kept.facts["exit_depths"])
        return
    exits, rule = evidence.logits.shape[1], CRITERIA[policy.criterion]
    patience = [t for t in PATIENCE if t <= exits] if rule.counts_exits else [policy.patience]
    windows = range(2, exits + 1) if policy.criterion == "window" else [min(policy.window, exits)]
    for t, m in product(patience, windows):
        tried = replace(policy, patience=t, threshold=0.0, window=m)
        for tau in candidate_thresholds(evidence, tried, kept.facts["problem_type"], steps=60):
            yield replace(tried, threshold=tau)


# ---- the table ------------------------------------------------------------------------------------------------------


def as_markdown(results: list[dict[str, Any]], goals: list[float]) -> str:
    """One table per task: cross-layer average, full depth and points, mean ± standard deviation over seeds.

    A full depth no better than the majority class is marked with *.
    """
    tables = []
    for task in dict.fromkeys(result["task"] for result in results):
        of_task = [result for result in results if result["task"] == task]
        titles = ["system", "average of exits", "full depth", *(f"{100 * goal:.0f} % saved" for goal in goals), "seeds"]
        lines = [task_title(of_task[0]), "", "| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
        for system in dict.fromkeys(result["system"] for result in of_task):
            lines.append(system_row([result for result in of_task if result["system"] == system], goals))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def task_title(result: dict[str, Any]) -> str:
    """What the table's numbers are."""
    budget = result["run"]["budget"]
    return (
        f"**{result['task']}** ({result['metric']}; majority class {result['majority']:.3f}; {result['train_rows']:,} "
        f"training rows, {budget['epochs']:g} epochs; {result['run']['backbone']})"
    )


def system_row(runs: list[dict[str, Any]], goals: list[float]) -> str:
    """A system's line."""
    full, majority = [run["full"] for run in runs], float(np.mean([run["majority"] for run in runs]))
    star = "*" if np.mean(full) <= majority else ""
    cells = [spread([run["average"] for run in runs]), spread(full) + star]
    for number in range(len(goals)):
        at = [run["points"][number] for run in runs]
        if any(point is None for point in at):
            cells.append("not reachable")
            continue
        share = 100 * np.mean([point["saved"] for point in at])
        cells.append(f"{spread([point['score'] for point in at])} @ {share:.0f} %")
    return "| " + " | ".join([runs[0]["system"], *cells, str(len(runs))]) + " |"


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation; of one value the value alone."""
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean
