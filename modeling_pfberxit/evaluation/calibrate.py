"""`pfberxit calibrate` and `pfberxit frontier`: from a saved model and a data set to operating points and pictures."""

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer

from ..data.tasks import Task, encode, load_task
from ..model.exit_policy import FULL_DEPTH, POLICY_CHECKS, ExitPolicy, configured_policy, describe, resolve_policy
from ..model.labels import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from . import plots
from .calibration import Calibrated, all_points, calibrate, conformal
from .clock import measure_clock
from .frontier import sweep
from .frontier_report import as_markdown, frontiers, write_csv
from .precision import Changed, compare_precisions
from .precision import as_markdown as as_markdown_of_precisions
from .recording import Recording, record


def model_and_rows(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any] | None = None
) -> tuple[PFBerxitForSequenceClassification, Task, Dataset]:
    """A saved model, the task with the model's own labels, and a split of its data (or `all` of them), encoded.

    Args:
        columns: what of the data set's columns is named, as `load_task` takes it.
    """
    loaded = PFBerxitForSequenceClassification.from_pretrained(model).eval()
    task, data = load_task(dataset, config, **(columns or {}), model=loaded)
    split = split or task.evaluation_split
    if split == "all":
        data[split] = concatenate_datasets(list(data.values()))
    if split not in data:
        refuse("split", split, f"one of {', '.join(data)}, or all")
    part = data[split] if not rows else data[split].select(range(min(rows, len(data[split]))))
    return loaded, task, encode(task, part, AutoTokenizer.from_pretrained(model, padding_side="right"))


def recorded(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, columns: dict[str, Any] | None = None
) -> tuple[PFBerxitForSequenceClassification, Task, Recording]:
    """A saved model, the task, and what the model's exits say about a split of its data."""
    loaded, task, encoded = model_and_rows(model, dataset, config, split, rows, columns)
    split = split or task.evaluation_split
    source = {"dataset": task.dataset, "config": task.config, "split": split, "metric": task.metric}
    return loaded, task, record(loaded, encoded, **source)


def run_calibration(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, seed: int, criteria: list[str] | None,
    speed_up: list[float], max_drop: list[float], milliseconds: list[float], agreement: list[float],
    columns: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Find a point for every target on half of the rows, report it on the others, store it in the model's config."""
    loaded, task, whole = recorded(model, dataset, config, split, rows, columns)
    chosen_on, reported_on = whole.split(0.5, seed)

    tried = all_points(chosen_on, task.metric, criteria) if speed_up or max_drop or milliseconds else None

    def choose(**target: Any) -> Calibrated:
        return calibrate(chosen_on, reported_on, task.metric, **target, tried=tried, config=loaded.config)

    found = {f"{value:g}x": choose(speed_up=value) for value in speed_up}
    found |= {f"drop-{value:g}": choose(max_drop=value) for value in max_drop}
    if milliseconds:
        length = int(whole.lengths.double().mean().round())
        time_of = measure_clock(loaded, (1,), (length,)).at(1, length)
        found |= {f"{value:g}ms": choose(milliseconds=value, time_of=time_of) for value in milliseconds}
    for value in agreement:
        policy = conformal(chosen_on, configured_policy(loaded.config), 1 - value)
        points = (sweep(part, [policy], task.metric, loaded.config)[0] for part in (chosen_on, reported_on))
        found[f"agreement-{value:g}"] = Calibrated(*points)
    stored = {name: operating_point(each, whole, task, len(reported_on)) for name, each in found.items()}
    (full,) = sweep(reported_on, [FULL_DEPTH], task.metric)
    print(f"\n{task.name}: chosen on {len(chosen_on)} rows, reported on {len(reported_on)} others\n")
    print(as_table(found, full.score, task.metric))
    if stored and os.path.isdir(model):
        store(model, stored)
        print(f"\nStored in {model}/config.json; use one by its name: exit_policy={next(iter(stored))!r}")
    return stored


def operating_point(found: Calibrated, recording: Recording, task: Task, rows: int) -> dict[str, Any]:
    """A policy with what it was measured to do, as the config keeps it."""
    return {
        **found.policy.stated(),
        "dataset": task.dataset,
        "config": task.config,
        "split": recording.source["split"],
        "rows": rows,
        "metric": task.metric,
        "score": round(found.reported.score, 4),
        "layers": round(found.reported.layers, 3),
        "layers_saved": round(found.reported.saved, 4),
        "macs": round(found.reported.macs, 4),
    }


def store(folder: str, points: dict[str, dict[str, Any]]) -> None:
    """Add operating points to a saved model's config.json, in one move.

    Raises:
        ValueError: a point that makes no policy. Nothing is written then.
    """
    for point in points.values():
        ExitPolicy(**{name: value for name, value in point.items() if name in POLICY_CHECKS})
    path = Path(folder) / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["operating_points"] = {**(values.get("operating_points") or {}), **points}
    draft = path.with_suffix(".json.tmp")
    draft.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(draft, path)


def as_table(found: dict[str, Calibrated], full: float, metric: str) -> str:
    """Every point: its policy, and its score and cost on the rows it was not chosen on."""
    titles = ["point", "policy", f"{metric}, chosen on", f"{metric}, others", "layers saved", "speed-up", "macs"]
    lines = ["| " + " | ".join(titles) + " |", "|---|---|" + "---:|" * 5]
    lines.append(f"| full depth | | | {full:.3f} | 0 % | 1.00 | 1.00 |")
    for name, each in found.items():
        chosen, reported = each.chosen, each.reported
        lines.append(
            f"| {name} | {describe(each.policy)} | {chosen.score:.3f} | {reported.score:.3f} "
            f"| {100 * reported.saved:.0f} % | {reported.speed_up:.2f} | {reported.macs:.2f} |"
        )
    return "\n".join(lines)


def run_frontier(
    model: str, dataset: str, config: str | None, split: str | None, rows: int, output: str, batch_sizes: list[int],
    lengths: list[int], columns: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Every criterion's frontier: a recording, a CSV, a picture and a table in a folder; milliseconds if asked for."""
    loaded, task, recording = recorded(model, dataset, config, split, rows, columns)
    clock = measure_clock(loaded, batch_sizes, lengths) if batch_sizes else None
    folder = Path(output)
    recording.save(folder / "recording.safetensors")
    found = frontiers(recording, task.metric, loaded.config)
    (full,) = sweep(recording, [FULL_DEPTH], task.metric)
    write_csv(found, folder / "frontier.csv", clock)
    title = f"{task.name}, {recording.source['split']}: {len(recording)} rows, one model, 95 % bootstrap over rows"
    plots.frontiers(found, full.score, task.metric, folder / "frontier.png", title)
    print(f"\n{task.name}: {task.metric} {full.score:.3f} at full depth, {len(recording)} rows\n")
    print(as_markdown(found, task.metric))
    print(f"\nWrote {folder}/recording.safetensors, frontier.csv and frontier.png")


def run_precision(
    model: str,
    dataset: str,
    config: str | None,
    split: str | None,
    rows: int,
    precisions: list[str],
    policy: str | None,
    columns: dict[str, Any] | None = None,
) -> list[Changed]:
    """Record a split in every precision, and print what changes under a policy."""
    loaded, task, encoded = model_and_rows(model, dataset, config, split, rows, columns)
    asked = resolve_policy(policy, loaded.config, loaded.exit_depths, problem_type_of(loaded.config))
    if asked is None:
        refuse("policy", policy, "an operating point, or a config with a threshold: without one no row leaves early")
    found = compare_precisions(loaded, encoded, asked, precisions)
    print(f"{task.name}, {len(encoded)} rows, {describe(asked)}\n\n{as_markdown_of_precisions(found)}")
    return found
