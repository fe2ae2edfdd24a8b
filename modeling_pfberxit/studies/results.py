"""Results beside the trainings they come from: `results.json`, to which every command adds its own."""

import json
from pathlib import Path
from typing import Any


def group(result: dict[str, Any]) -> tuple[str, str]:
    """What results of one table have in common: the task, and all of their run but the seed."""
    shared = {name: value for name, value in result["run"].items() if name != "seed"}
    return result["task"], json.dumps(shared, sort_keys=True)


def added(folder: Path, results: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """Add results to a folder's; returns all of them, group by group, in the order they were added.

    Args:
        what: the field by which results of one run and seed differ; a newer one replaces an older one.
    """
    path = folder / "results.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    by_key = {(*group(each), each["run"]["seed"], each[what]): each for each in [*known, *results]}
    groups = list(dict.fromkeys(map(group, by_key.values())))
    everything = sorted(by_key.values(), key=lambda each: groups.index(group(each)))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return everything
