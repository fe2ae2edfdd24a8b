"""Operating points for several targets at once: chosen on some rows, reported on others, kept in the config."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.tasks import Task
from ..model.exit_policy import POLICY_CHECKS, ExitPolicy, configured_policy, describe
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import update_config
from ..model.validation import refuse
from .calibration import Calibrated, all_points, calibrate, conformal
from .clock import measure_clock
from .frontier import sweep
from .recording import Recording
from .tables import header, line


def reach(
    model: PFBerxitForSequenceClassification, chosen_on: Recording, reported_on: Recording, metric: str,
    criteria: Sequence[str] | None = None, *, speed_up: Sequence[float] = (), max_drop: Sequence[float] = (),
    milliseconds: Sequence[float] = (), agreement: Sequence[float] = (),
) -> dict[str, Calibrated]:  # fmt: skip
    """The best policy for every target, by its name: `1.5x`, `drop-0.01`, `3ms`, `agreement-0.95`.

    Args:
        chosen_on, reported_on: recordings of disjoint rows.
        criteria: rules to choose among; default: all whose evidence was recorded.
        speed_up, max_drop, milliseconds: as `calibrate` takes them, several of each; milliseconds are measured here,
            for one row of the mean length.
        agreement: with full depth, by `conformal`, of the model's own rule.

    Raises:
        ValueError: a target that no policy reaches.
    """
    tried = all_points(chosen_on, metric, criteria) if speed_up or max_drop or milliseconds else None
    if criteria is not None and tried is None:
        refuse("criteria", list(criteria), "left out with agreement alone, which is that of the model's own rule")

    def choose(**target: Any) -> Calibrated:
        return calibrate(chosen_on, reported_on, metric, **target, tried=tried, config=model.config)

    found = {f"{value:g}x": choose(speed_up=value) for value in speed_up}
    found |= {f"drop-{value:g}": choose(max_drop=value) for value in max_drop}
    if milliseconds:
        lengths = [*chosen_on.lengths.tolist(), *reported_on.lengths.tolist()]
        length = round(sum(lengths) / len(lengths))
        time_of = measure_clock(model, (1,), (length,)).at(1, length)
        found |= {f"{value:g}ms": choose(milliseconds=value, time_of=time_of) for value in milliseconds}
    for value in agreement:
        policy = conformal(chosen_on, configured_policy(model.config), 1 - value)
        points = (sweep(part, [policy], metric, model.config)[0] for part in (chosen_on, reported_on))
        found[f"agreement-{value:g}"] = Calibrated(*points)
    return found


def operating_point(found: Calibrated, recording: Recording, task: Task, rows: int) -> dict[str, Any]:
    """A policy with its measured score and cost, as the config keeps it."""
    macs = found.reported.macs
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
        **({} if macs is None else {"macs": round(macs, 4)}),
    }


def store(folder: str, points: dict[str, dict[str, Any]]) -> None:
    """Add operating points to a saved model's config.json, in one move.

    Raises:
        ValueError: a point that makes no policy. Nothing is written then.
    """
    for point in points.values():
        ExitPolicy(**{name: value for name, value in point.items() if name in POLICY_CHECKS})
    stored = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("operating_points")
    update_config(folder, operating_points={**(stored or {}), **points})


def as_markdown(found: dict[str, Calibrated], full: float, metric: str) -> str:
    """Every point: its policy, and its score and cost on the rows it was not chosen on."""
    titles = ["point", "policy", f"{metric}, chosen on", f"{metric}, others", "layers saved", "speed-up", "macs"]
    lines = [header(titles), line(["full depth", "", "", f"{full:.3f}", "0 %", "1.00", "1.00"])]
    for name, each in found.items():
        chosen, reported = each.chosen, each.reported
        scores = [f"{chosen.score:.3f}", f"{reported.score:.3f}"]
        costs = [f"{100 * reported.saved:.0f} %", f"{reported.speed_up:.2f}", f"{reported.macs:.2f}"]
        lines.append(line([name, describe(each.policy), *scores, *costs]))
    return "\n".join(lines)
