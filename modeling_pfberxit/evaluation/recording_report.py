"""Tables, pictures and a file of rows from a recording: where predictions settle, where rows exit, drift."""

import csv
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.exit_policy import FULL_DEPTH, ExitPolicy, describe
from ..model.validation import refuse
from . import plots
from .confusion import class_scores, confusion, confusion_table, scores_table
from .exit_patterns import Drift, exits_by_class, exits_by_length, overthinking, settled_depth
from .recording import Recording
from .tables import header, line

Groups = dict[str, dict[str, np.ndarray]]


def comparable(before: Recording, after: Recording, policy: ExitPolicy | None) -> Recording:
    """The earlier recording, if both have the same exits and outputs, so that their exit histograms compare."""
    if policy is None:
        refuse("policy", None, "given with against: drift is a matter of where rows leave")
    shapes = [(each.exit_depths, each.problem_type, each.evidence.logits.shape[2:]) for each in (before, after)]
    if shapes[0] != shapes[1]:
        refuse("against", shapes[0], f"a recording with the exits and answers of the other, {shapes[1]}")
    return before


# ---- tables ---------------------------------------------------------------------------------------------------------


def settling(recording: Recording) -> str:
    """By layer, the shares of rows first right and settled there; then wasted layers and overthinking."""
    depths, settled = recording.exit_depths, settled_depth(recording)
    lines = [header(["layer", *map(str, depths)]), shares_line("settled for good (%)", settled, depths)]
    tail = f"Layers run after the answer had settled: {(recording.layers - settled).double().mean():.2f} on average."
    if recording.labels is not None:
        found = overthinking(recording)
        lines.append(shares_line("first right (%)", found.first_right, depths))
        tail += (
            f" Right at the end and before: {100 * found.wasteful:.1f} %. Right before, wrong at the end: "
            f"{100 * found.destructive:.1f} %. Right nowhere: {100 * (found.first_right == 0).double().mean():.1f} %."
        )
    return "\n".join(lines) + f"\n\n{tail}"


def shares_line(name: str, layers: Tensor, depths: list[int]) -> str:
    """How many per cent of the rows have each of these layers."""
    return line([name, *(f"{100 * (layers == depth).double().mean():.1f}" for depth in depths)])


def by_class(recording: Recording, policy: ExitPolicy | None) -> str:
    """Scores of every class under a policy, or at full depth, and with one label for each row who is taken for whom."""
    scores = class_scores(recording, policy)
    parts = [f"By class, {describe(policy or FULL_DEPTH)}", scores_table(scores)]
    if recording.problem_type != MULTI_LABEL:
        counts = confusion(recording, policy)
        parts.append(confusion_table(counts, scores.names, scores.rows - counts.sum(1)))
    return "\n\n".join(parts)


def leaving(recording: Recording, policy: ExitPolicy) -> Groups:
    """Executed layers of the rows by class, where they have one, and by length."""
    groups = {"By length": exits_by_length(recording, policy)}
    if recording.labels is not None and recording.problem_type != REGRESSION:
        by_label = exits_by_class(recording, policy, recording.names)
        groups["By label"] = {name: depths for name, depths in by_label.items() if len(depths)}
    return groups


def drifting(found: Drift) -> str:
    """The shares of rows that exited at each layer, before and now, and the test of their difference."""
    layers = [layer for layer in found.after if found.before[layer] or found.after[layer]]
    lines = [header(["rows that leave at layer", *map(str, layers)])]
    for name, shares in (("before (%)", found.before), ("now (%)", found.after)):
        lines.append(line([name, *(f"{100 * shares[layer]:.1f}" for layer in layers)]))
    verdict = "The exits have drifted" if found else "No drift is shown"
    return "\n".join(lines) + f"\n\n{verdict}: p = {found.p_value:.3g} (chi-squared test)."


# ---- files ----------------------------------------------------------------------------------------------------------


def save(recording: Recording, policy: ExitPolicy | None, groups: Groups, folder: Path) -> None:
    """A picture for each way to group the rows, and `rows.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    for title, depths in groups.items():
        plots.exit_depths(depths, recording.layers, folder / f"exits-{title.lower().replace(' ', '-')}.png", title)
    columns = {"length": recording.lengths, "settled": settled_depth(recording)}
    if recording.labels is not None:
        columns["first_right"] = overthinking(recording).first_right
    if policy is not None:
        columns["layers"] = recording.replay(policy)[1]
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", *columns])
        for number, values in enumerate(torch.stack([*columns.values()], dim=1).tolist()):
            writer.writerow([number, *values])
