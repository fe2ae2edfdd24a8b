"""Training strategies: which exits learn at a step, with which weights, and how far gradients reach.

A strategy is a cycle of exit groups. Jointly trained exits form one group; two-stage training is two runs, one for the
last exit and one for the others; alternating training takes turns between the last exit and all of them; ElasticBERT's
grouped training goes through groups of exits. What does not learn at a step stays outside the loss, so no gradient
reaches it and no optimiser moves it; `requires_grad` never changes. The losses themselves are in `losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .validation import refuse


class TrainingProgress(NamedTuple):
    """Optimiser steps done, of how many. `training.StrategyCallback` keeps it up to date on the model."""

    step: int
    total: int


class Phase(NamedTuple):
    """What one step teaches."""

    exits: tuple[int, ...]  # numbers (0-based) of the exits that learn
    weights: Tensor  # of their losses, in the same order
    encoder_learns: bool = True  # False: only exits do, gradients stop in front of them
    equilibrium: bool = False
    sharpness: float | None = (
        None  # how much a row's losses weigh most where it would leave; None: all rows weigh alike
    )

    def learners_from(self, number: int) -> int:
        """How many exits learn at this depth or deeper."""
        return sum(exit >= number for exit in self.exits)


# ---- which exits, which weights -------------------------------------------------------------------------------------


def exit_groups(config: PreTrainedConfig, exit_depths: list[int]) -> list[tuple[int, ...]]:
    """The groups of exit numbers that take turns, one group per optimiser step."""
    if config.exit_groups is not None:
        if unknown := {layer for group in config.exit_groups for layer in group} - set(exit_depths):
            refuse("exit_groups", sorted(unknown), f"layers that have an exit: {exit_depths}")
        return [tuple(exit_depths.index(layer) for layer in group) for group in config.exit_groups]
    return STRATEGIES[config.training_strategy].groups(config, exit_depths)


def all_together(config: PreTrainedConfig, exit_depths: list[int]) -> list[tuple[int, ...]]:
    """One group."""
    return [tuple(range(len(exit_depths)))]


def last_first(config: PreTrainedConfig, exit_depths: list[int]) -> list[tuple[int, ...]]:
    """In the first run the last exit, in the second the others."""
    check_two_stage(config, exit_depths)
    *inner, last = range(len(exit_depths))
    return [(last,)] if config.training_stage == 1 else [tuple(inner)]


def in_turns(config: PreTrainedConfig, exit_depths: list[int]) -> list[tuple[int, ...]]:
    """The last exit and all exits; a single exit learns at every step."""
    *inner, last = range(len(exit_depths))
    return [(last,), (*inner, last)] if inner else [(last,)]


class Strategy(NamedTuple):
    """Which exits learn together, and in how many runs."""

    groups: Callable[[PreTrainedConfig, list[int]], list[tuple[int, ...]]]
    runs: int = 1


STRATEGIES = {
    "joint": Strategy(all_together),
    "two_stage": Strategy(last_first, runs=2),
    "alternating": Strategy(in_turns),
}


def in_last_stage(config: PreTrainedConfig) -> bool:
    """Whether this is a second run, which leaves alone what the first has taught."""
    return 1 < STRATEGIES[config.training_strategy].runs == config.training_stage


def check_two_stage(config: PreTrainedConfig, exit_depths: list[int]) -> None:
    """Refuse two stages where the second could not leave the first one's work alone, or has nothing to do."""
    if len(exit_depths) == 1:
        refuse("training_strategy", "two_stage", "joint: this model has one exit, so there is no second stage")
    if config.exit_shared:
        refuse("exit_shared", True, "False with two_stage: the second stage would move the last exit's head")
    moves = config.train_pooler or config.train_backbone
    if config.exit_pooler == "backbone" and moves:
        refuse("exit_pooler", "backbone", "'own' or 'none' with two_stage: the second stage would move the last exit's")


def needs_progress(config: PreTrainedConfig, exit_depths: list[int]) -> bool:
    """Whether the strategy changes in the course of the run, so that the model needs `training_progress`."""
    return len(exit_groups(config, exit_depths)) > 1 or EXIT_WEIGHTS[config.exit_weights].follows_steps


def current_phase(
    config: PreTrainedConfig, exit_depths: list[int], progress: TrainingProgress | None, learned: Tensor | None
) -> Phase:
    """What the step that `progress` points at teaches.

    Raises:
        ValueError: the strategy follows the run's steps, and they are not counted.
    """
    if progress is None and needs_progress(config, exit_depths):
        given = {name: getattr(config, name) for name in ("training_strategy", "exit_groups", "exit_weights")}
        callback = "modeling_pfberxit.training.StrategyCallback()"
        refuse("callbacks", given, f"given with this strategy: Trainer(..., callbacks=[{callback}]) counts its steps")
    groups, progress = exit_groups(config, exit_depths), progress or TrainingProgress(0, 1)
    exits = groups[progress.step % len(groups)]
    weights = exit_weights(config.exit_weights, [exit_depths[exit] for exit in exits], exit_depths, progress, learned)
    sharpness = row_sharpness(config.exit_weights, progress)
    return Phase(exits, weights, not in_last_stage(config), config.gradient_equilibrium, sharpness)


def whole_objective(config: PreTrainedConfig, exit_depths: list[int], learned: Tensor | None) -> Phase:
    """What a whole run teaches, as evaluation sums it up: every exit that ever learns, as it weighs in the end."""
    exits = tuple(sorted({exit for group in exit_groups(config, exit_depths) for exit in group}))
    depths, end = [exit_depths[exit] for exit in exits], TrainingProgress(1, 1)
    weights = exit_weights(config.exit_weights, depths, exit_depths, end, learned)
    return Phase(exits, weights, sharpness=row_sharpness(config.exit_weights, end))


def exit_weights(
    kind: str, depths: list[int], exit_depths: list[int], progress: TrainingProgress, learned: Tensor | None
) -> Tensor:
    """What the losses of the exits at `depths` weigh, (len(depths),)."""
    return EXIT_WEIGHTS[kind].weigh(torch.tensor(depths, dtype=torch.float32), exit_depths, progress, learned)


def by_depth(layers: Tensor, exit_depths: list[int], progress: TrainingProgress, learned: Tensor | None) -> Tensor:
    """Layer i over the sum of the layers (PABEE, F-PABEE): layers 1 and 3 weigh 1/4 and 3/4."""
    return layers / layers.sum()


def uniform(layers: Tensor, exit_depths: list[int], progress: TrainingProgress, learned: Tensor | None) -> Tensor:
    """1 each, a plain sum (ElasticBERT, DeeBERT)."""
    return torch.ones_like(layers)


def as_learned(layers: Tensor, exit_depths: list[int], progress: TrainingProgress, learned: Tensor | None) -> Tensor:
    """Sigmoids of trained parameters, the last exit taking what is left of the total (ELBERT)."""
    if learned is None:
        refuse_unlearned("learned")
    return learned[[exit_depths.index(depth) for depth in layers.tolist()]]


def refuse_unlearned(kind: str) -> NoReturn:
    """Refuse weights that are to be learned by a model that was made without them."""
    refuse("exit_weights", kind, "chosen when the model is made: this one has no weights to learn")


def rising(layers: Tensor, exit_depths: list[int], progress: TrainingProgress, learned: Tensor | None) -> Tensor:
    """In the course of the run from 0.01 to the exit's share of the layers, the last exit 1 (Shallow-Deep)."""
    share = layers / exit_depths[-1]
    done = progress.step / max(progress.total, 1)
    return torch.minimum(share, 0.01 + done * share).masked_fill(layers == exit_depths[-1], 1.0)


class ExitWeights(NamedTuple):
    """What the losses of exits weigh; whether that changes in the course of a run, is learned, or differs by row."""

    weigh: Callable[[Tensor, list[int], TrainingProgress, Tensor | None], Tensor]
    follows_steps: bool = False
    learned: bool = False
    by_row: bool = False


EXIT_WEIGHTS = {
    "depth": ExitWeights(by_depth),
    "uniform": ExitWeights(uniform),
    "learned": ExitWeights(as_learned, learned=True),
    "rising": ExitWeights(rising, follows_steps=True),
    "leaving": ExitWeights(uniform, follows_steps=True, by_row=True),
}


def row_sharpness(kind: str, progress: TrainingProgress) -> float | None:
    """COSEE's beta at a step: from 0 at the start of the run to 10 at its end; None: all rows weigh alike."""
    return 10 * progress.step / max(progress.total, 1) if EXIT_WEIGHTS[kind].by_row else None


def where_rows_leave(signals: Tensor, sharpness: float, thresholds: int = 5) -> Tensor:
    """COSEE: what each row's loss weighs at each exit, from signals that fall as exits get sure: (B, E) -> (B, E).

    Under a threshold a row leaves at its first inner exit with a signal below it, else at the last one, m; its loss at
    exit e weighs exp(-sharpness |e - m|), with a mean of 1 over the exits. Means over thresholds spaced evenly in the
    range of the batch's inner signals: the paper draws them from the range of the epoch before.

    Example: a row that leaves at exit 1 of 2 weighs 2 / (1 + e^-s) there and 2 e^-s / (1 + e^-s) at the last one.
    """
    exits = signals.shape[1]
    if exits == 1:
        return torch.ones_like(signals)
    inner = signals.detach()[:, :-1]
    low, high = inner.aminmax()
    levels = low + (high - low) * (torch.arange(thresholds, device=signals.device) + 0.5) / thresholds
    sure = torch.nn.functional.pad(inner < levels[:, None, None], (0, 1), value=True)  # (T, B, E)
    leaves = sure.int().argmax(-1, keepdim=True)  # (T, B, 1), the first
    distances = (torch.arange(exits, device=signals.device) - leaves).abs()
    return exits * (-sharpness * distances).softmax(-1).mean(0)


def learns_weights(config: PreTrainedConfig) -> bool:
    """Whether what the losses of the exits weigh is learned with them."""
    return EXIT_WEIGHTS[config.exit_weights].learned


class LearnedWeights(nn.Module):
    """ELBERT: sigmoid(theta_i) for every exit but the last, which takes what is left of their number M."""

    def __init__(self, exits: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((exits - 1,), 4.0))

    def forward(self) -> Tensor:
        """The weights of all exits, (E,); they sum to E."""
        inner = self.theta.float().sigmoid()
        return torch.cat([inner, (len(inner) + 1 - inner.sum())[None]])


# ---- how far gradients reach ----------------------------------------------------------------------------------------


class ScaleGradient(torch.autograd.Function):
    """The identity, with gradients multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        """The values."""
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient times the factor."""
        return gradient * ctx.factor, None


def branch(hidden_states: Tensor, number: int, phase: Phase | None) -> tuple[Tensor, Tensor]:
    """What the exit reads and what the next layer reads: the same values, with gradients as the phase has them.

    With gradient equilibrium (ElasticBERT) the gradient that reaches a depth is the mean, not the sum, of those of the
    exits from there on: 1 / k for k of them in front of the fork, k - 1 on the way to the next layer.
    """
    if phase is None:
        return hidden_states, hidden_states
    if not phase.encoder_learns:
        return hidden_states.detach(), hidden_states.detach()
    if phase.equilibrium and number in phase.exits:
        learners = phase.learners_from(number)
        hidden_states = ScaleGradient.apply(hidden_states, 1 / learners)
        return hidden_states, ScaleGradient.apply(hidden_states, learners - 1)
    return hidden_states, hidden_states
