"""Table 6: scores at batch sizes, where each row exits on its own and where a batch exits as a whole.

Here a row's prediction never depends on its batch, so every batch size has the same numbers. In PABEE's released code a
batch stops at the first exit at which all of its rows may leave, and that exit's predictions are taken for all of them.
That rule is replayed beside it, rows in the order of the data: once with settings chosen anew for each batch size, once
with those of batch size 1.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..evaluation.frontier import Point, grid, judging, measured
from ..evaluation.recording import Recording
from ..evaluation.tables import header, line, point_cell
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.criteria import rule_of
from ..model.exit_policy import ExitPolicy, configured_policy
from ..model.validation import refuse
from . import paper_values
from .comparison_table import setting_near
from .paper_study import RULES, Study
from .trainings import Trained

GOALS = (0.75, 0.5, 0.25)
NOTE = """\
*own*: rows leave on their own, printed values beside them (score @ layers saved). *whole*: the batch leaves as a whole,
settings chosen anew on held-out rows for each batch size. *kept*: the same with the settings of batch size 1.
† The paper's Table 5 prints another value for batch size 1. Its text finds almost no difference between batch sizes."""


def whole_batches(
    recording: Recording, policies: Iterable[ExitPolicy], batch_size: int
) -> Iterator[tuple[ExitPolicy, Tensor, Tensor]]:
    """Replay policies where a batch stops at the first exit at which all of its rows may leave, or at the last one.

    Yields policy, logits (N, C) and executed layers (N,), rows batched in their order.

    Raises:
        ValueError: a rule whose predictions combine several exits.
    """
    logits, depths = recording.evidence.logits, torch.tensor(recording.exit_depths)
    everyone = torch.arange(len(recording))
    for policy in policies:
        if not rule_of(policy).own(policy):
            refuse("criterion", policy.criterion, "one whose predictions are those of the exit itself")
        fires = recording.scores.of(policy).fires(policy, recording.exit_depths)
        fires = torch.stack([fire for fire, _ in fires], dim=1)
        at = together(fires, batch_size)
        yield policy, logits[everyone, at], depths[at]


def together(fires: Tensor, batch_size: int) -> Tensor:
    """The exit at which each row's batch stops: (N, E), at which exits each row may leave -> (N,).

    Example: a row that may leave at exits 1 and 2 and one that may leave at 0 and 2 stop together at exit 2.
    """
    rows, exits = fires.shape
    filled = pad(fires, (0, 0, 0, -rows % batch_size), value=True)
    all_may = filled.view(-1, batch_size, exits).all(1)  # (batches, E)
    return (~all_may).cumprod(1).sum(1).clamp(max=exits - 1).repeat_interleave(batch_size)[:rows]


def sweep_whole(recording: Recording, policies: Iterable[ExitPolicy], metric: str, batch_size: int) -> list[Point]:
    """Score and layers of policies where batches stop as a whole; at batch size 1, each row on its own."""
    return measured(whole_batches(recording, policies, batch_size), recording, metric)


def at_batch_sizes(
    config: PFBerxitConfig, kept: Trained, sizes: Iterable[int]
) -> dict[tuple[str, int], list[dict[str, float] | None]]:
    """(*own*, *whole* or *kept*, batch size) -> a point for each of `GOALS`; None where no setting comes near."""
    metric = kept.metric
    rule, able = config.exit_criterion, judging(kept.chosen_on)
    policies = list(grid(kept.chosen_on, rule, configured_policy(config), steps=60)) if rule in able else []
    alone, found = chosen_at(kept, policies, metric, 1), {}
    own = reported(kept, alone, metric, 1)
    for size in sizes:
        found["own", size] = own
        found["whole", size] = reported(kept, chosen_at(kept, policies, metric, size), metric, size)
        found["kept", size] = reported(kept, alone, metric, size)
    return found


def chosen_at(kept: Trained, policies: list[ExitPolicy], metric: str, size: int) -> list[ExitPolicy | None]:
    """The settings nearest to `GOALS` on the held-out rows."""
    tried = sweep_whole(kept.chosen_on, policies, metric, size)
    return [setting_near(goal, tried) for goal in GOALS]


def reported(kept: Trained, chosen: list[ExitPolicy | None], metric: str, size: int) -> list[dict[str, float] | None]:
    """Score and share of layers saved on the reported rows, for every setting."""
    points: list[dict[str, float] | None] = []
    for policy in chosen:
        found = [] if policy is None else sweep_whole(kept.reported_on, [policy], metric, size)
        points.append({"score": found[0].score, "saved": found[0].saved} if found else None)
    return points


def table6(study: Study) -> str:
    """Batch sizes 1 to 16, three ways to leave; (printed score @ printed share)."""
    models, sizes = {task: study.models(RULES["pf-mlp"], task) for task in study.tasks}, paper_values.BY_BATCH
    found = {task: [at_batch_sizes(config, kept, sizes) for config, kept in models[task]] for task in study.tasks}
    titles = [f"{task} {100 * goal:.0f} %" for task in study.tasks for goal in GOALS]
    lines = [header(["exits", "batch size", *titles])]
    for way in ("own", "whole", "kept"):
        for size in sizes:
            cells = [
                point_cell([run[way, size][number] for run in runs], None) + beside(way, size, task, number)
                for task, runs in found.items()
                for number in range(len(GOALS))
            ]
            lines.append(line([way, str(size), *cells]))
    return "\n".join(lines) + f"\n\n{NOTE}"


def beside(way: str, size: int, task: str, number: int) -> str:
    """The printed value, † where the paper contradicts itself."""
    if way != "own" or task not in paper_values.BY_BATCH[size]:
        return ""
    score, share = paper_values.BY_BATCH[size][task][number]
    doubt = "†" if size == 1 and (score, share) != paper_values.EXITS["pf-mlp"][task][number] else ""
    return f" ({score} @ {share} %{doubt})"
