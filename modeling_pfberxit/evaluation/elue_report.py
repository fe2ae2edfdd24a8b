"""Points against a reference, from the files that `pfberxit frontier` and `pfberxit reproduce` write."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from ..model.criteria import STATIC, check_fit
from ..model.exit_policy import POLICY_CHECKS, ExitPolicy
from ..model.validation import refuse
from .elue import Points, dynamic_flops_file, elue_score, improves
from .frontier import frontier, grid, judging, sweep
from .recording import Recording
from .tables import header, line


def scores(points: str, reference: str | None, static: str | None, cost: str, metric: str | None) -> str:
    """A table of the points' ELUE scores, and the points outside the reference's range.

    Args:
        points: a CSV or a recording.
        reference: a file whose points, all of them, are the reference.
        static: a file whose static truncations are; default: those among `points`.
    """
    methods = read_points(points, cost, metric)
    against = reference_points(reference, cost, metric) if reference else static_points(static or points, cost, metric)
    return as_markdown({name: part for name, part in methods.items() if name != STATIC or reference}, against, cost)


def read_points(path: str, cost: str, metric: str | None) -> Mapping[str, Points]:
    """(cost, score) by criterion: of a CSV its lines, of a recording every rule's frontier.

    A frontier chosen on the rows it is scored on is a little better than it would be on others.
    """
    if Path(path).suffix != ".csv":
        recording, metric = read_recording(path, cost, metric)
        swept = {name: sweep(recording, grid(recording, name), metric) for name in judging(recording)}
        return {name: [(each.layers, each.score) for each in frontier(found)] for name, found in swept.items()}
    found: dict[str, list[tuple[float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if missing := {cost, "score"} - set(lines.fieldnames or ()):
            refuse("cost", cost, f"a column of {path}, beside score; without {', '.join(sorted(missing))} it has "
                   f"{', '.join(lines.fieldnames or ())}")  # fmt: skip
        for each in lines:
            found.setdefault(each.get("criterion") or "points", []).append((float(each[cost]), float(each["score"])))
    return found


def reference_points(path: str, cost: str, metric: str | None) -> Points:
    """All points of a file that has those of one method."""
    methods = read_points(path, cost, metric)
    if len(methods) > 1:
        refuse("reference", path, f"a file with the points of one method, not of {', '.join(methods)}")
    return next(iter(methods.values()), []) or refuse("reference", path, "a file with points")


def static_points(path: str, cost: str, metric: str | None) -> Points:
    """A backbone cut off at each layer: of a recording every exit, of a CSV the truncations it lists."""
    if Path(path).suffix != ".csv":
        recording, metric = read_recording(path, cost, metric)
        return [(each.layers, each.score) for each in sweep(recording, grid(recording, STATIC), metric)]
    found = read_points(path, cost, metric)
    if STATIC not in found:
        refuse("static", path, f"a file with lines of the criterion {STATIC}; give another reference")
    return found[STATIC]


def read_recording(path: str, cost: str, metric: str | None) -> tuple[Recording, str]:
    """A labelled recording, and the metric given or else the one it names."""
    recording = Recording.load(path)
    if recording.labels is None:
        refuse("points", path, "a recording of labelled rows")
    if cost != "layers":
        refuse("cost", cost, "layers for a recording; a CSV has other columns")
    return recording, metric or recording.source.get("metric") or refuse("metric", None, f"given: {path} names none")


def as_markdown(methods: Mapping[str, Points], reference: Points, cost: str) -> str:
    """A line per method: the mean gap to the reference, how many points it is over, whether they improve on it."""
    low, high = min(reference)[0], max(reference)[0]
    lines, outside = [header(["", "ELUE score", "points", "left out", "Pareto improvement"])], []
    for name, points in methods.items():
        inside = [point for point in points if low <= point[0] <= high]
        value = f"{elue_score(inside, reference).score:+.4f}" if inside else "–"
        improved = "yes" if improves(points, reference) else "no"
        lines.append(line([name, value, str(len(inside)), str(len(points) - len(inside)), improved]))
        outside += [f"{name} at {point[0]:.4g}" for point in points if point not in inside]
    tail = f"\n\nThe reference covers {low:.4g} to {high:.4g} {cost}."
    return "\n".join(lines) + tail + (f" Left out: {', '.join(outside)}." if outside else "")


def write_dynamic_flops(points: str, policy: str | None, path: str) -> None:
    """Write a line per row, its length and its executed layers under the policy, as ELUE's server takes them."""
    if Path(points).suffix == ".csv":
        refuse("dynamic_flops", path, "asked of a recording; a CSV knows no rows")
    recording = Recording.load(points)
    _, layers = recording.replay(read_policy(policy, recording))
    Path(path).write_text(dynamic_flops_file(recording.lengths.tolist(), layers.tolist()), encoding="utf-8")


def read_policy(text: str | None, recording: Recording) -> ExitPolicy:
    """A policy from JSON, checked against the recording's exits."""
    try:
        values = json.loads(text or "")
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict) or set(values) - set(POLICY_CHECKS):
        refuse("policy", text, "a JSON object with fields of " + ", ".join(POLICY_CHECKS))
    policy = ExitPolicy(**values)
    if not policy.is_active(recording.problem_type):
        refuse("policy", text, "one under which rows leave: with a criterion, and its threshold")
    check_fit(policy, recording.exit_depths, recording.problem_type)
    return policy
