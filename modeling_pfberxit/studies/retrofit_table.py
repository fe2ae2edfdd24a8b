"""What a retrofitted classifier keeps of the original's answers and of its score, beside other ways to a faster one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.metrics import majority_in_words, score
from ..evaluation import plots
from ..evaluation.calibration import all_points
from ..evaluation.frontier import Point, frontier
from ..evaluation.recording import Recording
from ..evaluation.replay import same_answers
from ..evaluation.tables import table
from ..model.evidence import MULTI_LABEL, SINGLE_LABEL
from ..model.exit_policy import POLICY_CHECKS, ExitPolicy
from .comparison_table import ABOUT
from .results import group
from .trainings import Trained

SAVED = (0.3, 0.5)  # shares of layers
RETROFIT, LABELLED, CUT, INT8 = "retrofitted", "PF-BERxiT, from labels", "first layers, new head", "int8"


def measure(kept: Trained, labelled: Trained, tolerance: float | None) -> dict[str, Any]:
    """Agreement with the classifier and score of every way, on the reported rows.

    Args:
        kept: recordings of the retrofitted classifier; its last exit is the classifier itself.
        labelled: of PF-BERxiT trained on the classifier's own rows.
    """
    rows, facts = kept.reported_on, kept.facts
    judge = Judge(rows, kept.metric, tolerance or 0.0)
    found = [judge(INT8, "", torch.tensor(facts["int8"]), None)]
    tried = {
        RETROFIT: all_points(taught(kept.chosen_on), agreement_metric(rows)),
        LABELLED: all_points(labelled.chosen_on, kept.metric),
    }
    for goal in SAVED:
        share = f"{100 * goal:.0f} %"
        for way, part in ((RETROFIT, rows), (LABELLED, labelled.reported_on)):
            found += [judge.exits(way, share, part, policy) for policy in nearest(goal, tried[way], part)]
        found.append(judge.layer(CUT, share, goal))
    for name, point in facts["points"].items():
        policy = ExitPolicy(**{field: value for field, value in point.items() if field in POLICY_CHECKS})
        certified = f"certified {100 * point['certificate']['epsilon']:g} %"
        found.append({**judge.exits(RETROFIT, certified, rows, policy), "point": name})
    return {
        "task": facts["task"], "metric": kept.metric, "majority": kept.majority, "seed": facts["run"]["seed"],
        "full": judge.score(rows.evidence.logits[:, -1]), "labelled_full": judge.score(last(labelled.reported_on)),
        "train_rows": facts["train_rows"], "texts": facts["texts"], "found": found,
        "run": facts["run"],
    }  # fmt: skip


def last(recording: Recording) -> Tensor:
    """The last exit's logits, (N, C)."""
    return recording.evidence.logits[:, -1]


class Judge:
    """Holds answers against a classifier's own, and against labels."""

    def __init__(self, rows: Recording, metric: str, tolerance: float) -> None:
        self.rows, self.metric, self.tolerance = rows, metric, tolerance

    def score(self, logits: Tensor) -> float:
        """Of answers (N, C), against the labels."""
        return score(self.metric, logits.numpy(), self.rows.known_labels.numpy())

    def __call__(self, way: str, at: str, logits: Tensor, saved: float | None) -> dict[str, Any]:
        """What there is to say of answers (N, C)."""
        same = same_answers(logits, last(self.rows), self.rows.problem_type, self.tolerance)
        agreement = same.double().mean().item()
        return {"way": way, "at": at, "saved": saved, "agreement": agreement, "score": self.score(logits)}

    def exits(self, way: str, at: str, recording: Recording, policy: ExitPolicy) -> dict[str, Any]:
        """Of a policy on a recording of the same rows."""
        logits, layers = recording.replay(policy)
        return self(way, at, logits, 1 - layers.double().mean().item() / recording.layers)

    def layer(self, way: str, at: str, goal: float) -> dict[str, Any]:
        """Of the classifier cut after the layer that is nearest to a share of layers saved."""
        depths = self.rows.exit_depths[:-1]
        number = int(np.argmin([abs(1 - depth / self.rows.layers - goal) for depth in depths]))
        return self(way, at, self.rows.evidence.logits[:, number], 1 - depths[number] / self.rows.layers)


# ---- settings, without labels of the reported rows -------------------------------------------------------------------


def nearest(goal: float, tried: Sequence[Point], rows: Recording) -> list[ExitPolicy]:
    """The best policy for a share of layers saved: of those that others' rows chose, the one that saves it on these.

    None where none is near. What is saved on rows is known without their labels. Where the frontier has a gap there,
    since deeper settings are no better, the best of settings that save as much are taken as well.
    """
    alike = {round(20 * point.saved): point for point in sorted(tried, key=lambda point: point.score)}
    for points in (frontier(tried), list(alike.values())):
        saved = {each.policy: 1 - rows.replay(each.policy)[1].double().mean().item() / rows.layers for each in points}
        best = min(saved, key=lambda policy: abs(saved[policy] - goal))
        if abs(saved[best] - goal) <= ABOUT:
            return [best]
    return []


def taught(recording: Recording) -> Recording:
    """The recording with the last exit's answers for labels."""
    logits = last(recording)
    kind = recording.problem_type
    labels = logits.argmax(-1) if kind == SINGLE_LABEL else logits[:, 0]
    return replace(recording, labels=(logits > 0).float() if kind == MULTI_LABEL else labels)


def agreement_metric(recording: Recording) -> str:
    """What agreement of answers is called where they stand for labels."""
    return {SINGLE_LABEL: "accuracy", MULTI_LABEL: "micro_f1"}.get(recording.problem_type, "correlation")


# ---- tables ----------------------------------------------------------------------------------------------------------


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """A table for every result, and under it who is best."""
    return "\n\n".join(f"{title(each)}\n\n{ways(each)}\n\n{winners(each)}" for each in results)


def title(result: dict[str, Any]) -> str:
    """Task, what was trained and retrofitted, and what full depth scores."""
    run = result["run"]
    return (
        f"**{result['task']}** ({result['metric']}; {majority_in_words(result['metric'], result['majority'])}; "
        f"{run['backbone']}, seed {result['seed']}): "
        f"{result['train_rows']:,} rows with labels, {run['budget']['epochs']:g} epochs; "
        f"{result['texts']:,} texts without. Full depth {result['full']:.3f}, PF-BERxiT's {result['labelled_full']:.3f}"
    )


def ways(result: dict[str, Any]) -> str:
    """A line for every way and setting."""
    rows = [
        [each["way"], each["at"], "" if each["saved"] is None else f"{100 * each['saved']:.0f} %",
         f"{each['agreement']:.3f}", f"{each['score']:.3f}"]
        for each in result["found"]
    ]  # fmt: skip
    return table(["", "asked for", "layers saved", "same answer", result["metric"]], rows, align="ll")


def winners(result: dict[str, Any]) -> str:
    """Who keeps most answers, and who scores best, at each share of layers saved."""
    lines = []
    for goal in SAVED:
        share = f"{100 * goal:.0f} %"
        at = [each for each in result["found"] if each["at"] == share]
        agrees, scores = (max(at, key=lambda each: each[what]) for what in ("agreement", "score"))
        lines.append(f"At {share}: most same answers {agrees['way']}, best score {scores['way']}.")
    return " ".join(lines)


def few_texts(results: Sequence[dict[str, Any]]) -> str:
    """A line for every number of texts: answers kept and score at shares of layers saved, and certificates."""
    rows = []
    for each in sorted(results, key=lambda each: (group(each), each["texts"])):
        at = {found["at"]: found for found in each["found"] if found["way"] == RETROFIT}
        shares = [f"{100 * goal:.0f} %" for goal in SAVED]
        kept = [f"{at[share]['agreement']:.3f}, {at[share]['score']:.3f}" if share in at else "–" for share in shares]
        promised = [f"{name.removeprefix('certified ')} saves {100 * found['saved']:.0f} %"
                    for name, found in at.items() if name.startswith("certified")]  # fmt: skip
        rows.append([each["task"], f"{each['texts']:,}", *kept, "; ".join(promised) or "none passed"])
    names = [f"{100 * goal:.0f} % saved: same answer, score" for goal in SAVED]
    return table(["", "texts", *names, "certificates"], rows, align="lrrrl")


def picture(results: Sequence[dict[str, Any]], path: Path) -> Path:
    """A panel for every task: same answers over layers saved, a line for each way."""
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for of in dict.fromkeys(map(group, results)):
        same = [each for each in results if group(each) == of]
        name = f"{same[0]['task']}, {Path(same[0]['run']['backbone']).name}"
        panels[name] = {way: line_of(same, way) for way in (RETROFIT, LABELLED, CUT)}
    return plots.curves(panels, "layers saved (%)", path, "Answers that are the classifier's own", "same answer")


def line_of(results: Sequence[dict[str, Any]], way: str) -> tuple[np.ndarray, np.ndarray]:
    """Shares of layers saved (k,) and of answers kept (1, k) of one way, all seeds together."""
    points = sorted(
        (100 * each["saved"], each["agreement"]) for result in results for each in result["found"] if each["way"] == way
    )
    saved, agreement = np.array(points).reshape(-1, 2).T
    return saved, agreement[None]
