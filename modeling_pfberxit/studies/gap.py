"""What closes the gap to full fine-tuning at full depth: variants of PF-BERxiT, one at a time and the best together.

Every variant is a set of values of the config and of the budget. Whether it is ahead of training all weights is told as
a difference on the same rows and seeds, with the interval of both drawn anew together.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ..evaluation import plots
from ..evaluation.calibration import all_points
from ..evaluation.frontier import Point, resampled_scores, sweep
from ..evaluation.tables import spread, table
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import REGRESSION
from ..model.exit_policy import FULL_DEPTH
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.strategies import EXIT_WEIGHTS
from ..model.validation import refuse
from ..training.recipes import WIDE as RECIPE
from .beside import with_peft
from .comparison_table import setting_near
from .paper_study import Study
from .runs import Budget
from .seed_bands import interval
from .trainings import Trained

GOAL = 0.5  # the share of layers saved at which systems are compared beside full depth
RESAMPLES = 1000
ALL_WEIGHTS: dict[str, dict[str, Any]] = {
    "all weights": {"system": "pabee", "learning_rate": 1e-4},  # one training, judged by every rule
    "all weights, rate 5e-5": {"system": "pabee"},
    "all weights, twice as long": {"system": "pabee", "learning_rate": 1e-4, "epochs": 2},
    "all weights, then exits": {"system": "fastbert", "learning_rate": 1e-4},
}
WIDE: dict[str, Any] = {name: RECIPE[name] for name in ("adapter_placement", "adapter_dim", "learning_rate")}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "both places": {"adapter_placement": "both"},
    "width 128": {"adapter_dim": 128},
    "both, width 64": {"adapter_placement": "both", "adapter_dim": 64},
    "rate 2e-3": {"learning_rate": 2e-3},
    "both, width 64, rate 2e-3": WIDE,
    "both, width 64, rate 2e-3, twice as long": {**WIDE, "epochs": 2},
    "both, width 64, rate 2e-3, twice as long, taught by all weights": {**WIDE, "epochs": 2, "teacher": 0.5},
    "rate 5e-4": {"learning_rate": 5e-4},
    "exits: bottleneck": {"exit_pooler": "bottleneck"},
    "exits: first and mean": {"exit_pooling": "both"},
    "twice as long": {"epochs": 2},
    "lora": {"beside": "lora"},
    "lora, twice as long": {"beside": "lora", "epochs": 2},
    "lora, both, width 64, rate 2e-3, twice as long": {**WIDE, "epochs": 2, "beside": "lora"},
    "lora, both, rate 2e-3, exits: bottleneck, twice as long": {
        "beside": "lora",
        "adapter_placement": "both",
        "learning_rate": 2e-3,
        "exit_pooler": "bottleneck",
        "epochs": 2,
    },
    "learned scaling": {"beside": "norms"},
    "lower layers slower": {"depth_rate": 0.7},
    "exits in turns": {"training_strategy": "alternating"},
    "rows where they leave": {"exit_weights": "leaving"},
    "last exit first": {"training_strategy": "two_stage"},
    "both, width 64, rate 2e-3, last exit first": {**WIDE, "training_strategy": "two_stage"},
    "exits taught by the last": {"distillation": 0.5},
    "taught by all weights": {"teacher": 0.5},
}
NOTE = """\
Differences are in points, from *{reference}* on the same rows and seeds, with 95 % intervals, rows{seeds} drawn anew
together. *Held out*: full depth on rows that nothing learned from, by which to choose a variant. At {goal:.0f} % saved:
of all rules, the setting that scored best on held-out rows."""


@dataclass(frozen=True)
class Standing:
    """One variant on one task, over the seeds; differences are from the reference, on the same rows and seeds."""

    variant: str
    task: str
    metric: str
    seeds: list[int]
    share: float  # of the encoder's weights, what is trained
    held_out: list[float]  # full depth on the held-out rows, by which to choose a variant
    full: list[float]
    full_ahead: list[float]  # mean difference, and its interval
    half: list[float]  # at about half of the layers saved
    saved: list[float]  # the shares that are
    half_ahead: list[float]


class Measured(NamedTuple):
    """A variant's models, one for every seed, and their points on the reported rows."""

    models: list[Trained]
    full: list[Point]
    half: list[Point | None]  # at about half of the layers saved; None where no setting is near


def chosen(names: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Variants by name, in this order, the one that the others are compared with in front; all of them without names.

    Raises:
        ValueError: an unknown name.
    """
    known = {**ALL_WEIGHTS, **VARIANTS}
    if unknown := [name for name in names if name not in known]:
        refuse("variants", unknown, f"among {'; '.join(known)}")
    return {name: known[name] for name in names or known}


def fits(study: Study, knobs: dict[str, Any], task: str) -> bool:
    """Whether a variant can be trained on a task: rows weigh where they would leave among classes alone."""
    by_row = EXIT_WEIGHTS[knobs.get("exit_weights", PFBerxitConfig().exit_weights)].by_row
    return not by_row or study.source(task).task.problem_type != REGRESSION


def models(study: Study, knobs: dict[str, Any], task: str) -> list[Trained]:
    """A variant's trained models, one for every seed; its `epochs` are times the study's."""
    budget = {each.name: knobs[each.name] for each in fields(Budget) if each.name in knobs}
    if "epochs" in budget:
        budget["epochs"] *= study.budget.epochs
    config = {name: value for name, value in knobs.items() if name not in budget}
    return [kept for _, kept in replace(study, budget=replace(study.budget, **budget)).models(config, task)]


def measured(study: Study, knobs: dict[str, Any], task: str) -> Measured:
    """A variant, trained where it is not yet."""
    found = models(study, knobs, task)
    return Measured(found, [full_depth(kept) for kept in found], [half_depth(kept) for kept in found])


def full_depth(kept: Trained) -> Point:
    """The score of the last exit."""
    return sweep(kept.reported_on, [FULL_DEPTH], kept.metric)[0]


def half_depth(kept: Trained) -> Point | None:
    """At about half of the layers saved: of all rules, the setting that scored best on the held-out rows."""
    policy = setting_near(GOAL, all_points(kept.chosen_on, kept.metric))
    return None if policy is None else sweep(kept.reported_on, [policy], kept.metric)[0]


def ahead(
    models: Sequence[Trained], points: Sequence[Point | None], others: Sequence[Trained], rivals: Sequence[Point | None]
) -> list[float]:
    """By how much points score higher than rivals of the same seeds: mean, 95 % interval; [] where one is missing."""
    means, redrawn = [], []
    for kept, point, other, rival in zip(models, points, others, rivals, strict=True):
        if point is None or rival is None:
            return []
        means.append(point.score - rival.score)
        drawn = (resampled_scores([each], of.reported_on, of.metric, RESAMPLES)
                 for each, of in ((point, kept), (rival, other)))  # fmt: skip
        redrawn.append(next(drawn) - next(drawn))
    return [float(np.mean(means)), *interval(np.array(redrawn))[:, 0].tolist()]


def trained_share(study: Study, knobs: dict[str, Any]) -> float:
    """What is trained, as a share of the encoder's weights."""
    known = {field.name for field in fields(PFBerxitConfig)}
    with torch.device("meta"):
        config = PFBerxitConfig.from_backbone(study.backbone, **{name: knobs[name] for name in knobs if name in known})
        model = PFBerxitForSequenceClassification(config)
        encoder = sum(each.numel() for each in model.backbone.parameters())
        whole = with_peft(model, knobs["beside"]) if "beside" in knobs else model
    return sum(each.numel() for each in whole.parameters() if each.requires_grad) / encoder


def standing(study: Study, name: str, task: str, own: Measured, reference: Measured, share: float) -> Standing:
    """One variant beside the reference."""
    held_out = [sweep(kept.chosen_on, [FULL_DEPTH], kept.metric)[0].score for kept in own.models]
    half = [point for point in own.half if point is not None]
    return Standing(
        name, task, own.models[0].metric, list(study.seeds), share, held_out, [point.score for point in own.full],
        ahead(own.models, own.full, reference.models, reference.full), [point.score for point in half],
        [point.saved for point in half], ahead(own.models, own.half, reference.models, reference.half),
    )  # fmt: skip


def standings(study: Study, variants: dict[str, dict[str, Any]], task: str) -> list[Standing]:
    """Every variant that fits a task; the first is what they are compared with."""
    found = {name: measured(study, knobs, task) for name, knobs in variants.items() if fits(study, knobs, task)}
    reference = next(iter(found.values()))
    return [
        standing(study, name, task, own, reference, trained_share(study, variants[name])) for name, own in found.items()
    ]


# ---- the table ------------------------------------------------------------------------------------------------------


def difference(ahead: list[float]) -> str:
    """Mean and interval in points: "+0.4 [-0.8, +1.6]"."""
    mean, low, high = (100 * value for value in ahead)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def cells(each: Standing | None, reference: str) -> list[str]:
    """A variant's cells for one task: full depth on the held-out and on the reported rows, and half of the layers."""
    if each is None:
        return ["-"] * 3
    half = f"{spread(each.half)} @ {100 * sum(each.saved) / len(each.saved):.0f} %" if each.half_ahead else "-"
    compared = each.variant != reference
    return [
        spread(each.held_out),
        spread(each.full) + compared * f"<br>{difference(each.full_ahead)}",
        half + (f"<br>{difference(each.half_ahead)}" if compared and each.half_ahead else ""),
    ]


def as_markdown(found: Sequence[Standing], seeds: int) -> str:
    """A line per variant, three columns per task."""
    tasks, variants = (list(dict.fromkeys(getattr(each, name) for each in found)) for name in ("task", "variant"))
    titles = [title for task in tasks for title in (f"{task}, held out", "full depth", f"{100 * GOAL:.0f} % saved")]
    lines = []
    for variant in variants:
        own = {each.task: each for each in found if each.variant == variant}
        shown = [cell for task in tasks for cell in cells(own.get(task), variants[0])]
        lines.append([variant, f"{next(iter(own.values())).share:.1%}", *shown])
    note = NOTE.format(reference=variants[0], seeds=" and seeds" * (seeds > 1), goal=100 * GOAL)
    return f"{table(['', 'trained', *titles], lines)}\n\n{note}"


def gap(study: Study, variants: dict[str, dict[str, Any]], name: str) -> str:
    """Train what is missing; the table, and beside it numbers and picture as `name`.json and `name`.png.

    The first of the variants is what the others are compared with.
    """
    found = [each for task in study.tasks for each in standings(study, variants, task)]
    numbers = json.dumps([asdict(each) for each in found], indent=1) + "\n"
    (study.folder / f"{name}.json").write_text(numbers, encoding="utf-8")
    shown = {task: {each.variant: each.full_ahead for each in found if each.task == task} for task in study.tasks}
    title = f"Full depth, points ahead of {next(iter(variants))}; {len(study.seeds)} seed(s), 95 % interval"
    plots.differences(shown, study.folder / f"{name}.png", title)
    return as_markdown(found, len(study.seeds))
