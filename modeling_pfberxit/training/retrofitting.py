"""Exits that learn from the last one, on a record of what they read: no labels, no further pass through the encoder.

Which kind of head they are is chosen by how often they agree with the last exit on texts they have not learned from.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..evaluation.calibration import agreement
from ..evaluation.recording import Recording
from ..model.blueprint import rebuilt
from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from ..model.exits import Exits
from ..model.families import exit_heads
from ..model.heads import POOLINGS
from ..model.losses import distillation_losses, lte_loss, problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import label_names
from .exit_states import States

MOST_BYTES = 2_900_000  # that all exits together may take in a checkpoint
WIDTHS = (128, 64, 32, 16)
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 1e-3, 0.01, 0.1


@dataclass(frozen=True)
class Training:
    """How exits learn: AdamW, the rate rising for a tenth of the steps and falling to zero.

    Args:
        epochs, most: few texts make few steps, so that exits learn for up to `most` epochs as well; what agrees better
            on the choosing texts is kept.
        enough: steps, with half of which no longer run is tried.
    """

    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = LEARNING_RATE
    seed: int = 0
    most: int = 100
    enough: int = 1500

    def steps(self, rows: int) -> int:
        """Of all epochs over so many rows."""
        return self.epochs * math.ceil(rows / self.batch_size)

    def tried(self, rows: int) -> list["Training"]:
        """This one and, where it makes few steps, a longer one."""
        longer = min(self.most, self.epochs * self.enough // self.steps(rows))
        return [self, replace(self, epochs=longer)] if longer >= 2 * self.epochs else [self]


@dataclass(frozen=True)
class Learned:
    """Exits of one kind, and how often each agrees with the last one on the choosing rows."""

    kind: dict[str, Any]
    exits: Exits
    agreement: list[float]

    @property
    def mean_agreement(self) -> float:
        """Over the exits below the last layer."""
        return sum(self.agreement) / len(self.agreement)

    @property
    def in_words(self) -> str:
        """Each exit's agreement."""
        return " ".join(f"{each:.3f}" for each in self.agreement)


def kinds(config: PreTrainedConfig, exits: int) -> list[dict[str, Any]]:
    """The kinds of heads that are tried, the widest that keep a checkpoint small."""
    narrow = {"exit_pooler": "bottleneck", "exit_pooler_dim": widest(config, exits)}
    return [
        {"exit_pooler": "none", "exit_pooling": "both"},
        {**narrow, "exit_pooling": "mean"},
        {**narrow, "exit_pooling": "both"},
    ]


def widest(config: PreTrainedConfig, exits: int) -> int:
    """The most units of a bottleneck with which all exits together stay below `MOST_BYTES` in fp32."""
    size, labels = config.encoder_config().hidden_size, config.num_labels
    for width in WIDTHS:
        each = 2 * size * (width + 2) + width + (width + 1) * (labels + 1)
        if 4 * (exits - 1) * each < MOST_BYTES:
            return width
    return WIDTHS[-1]


def learn(
    model: PFBerxitForSequenceClassification, states: States, train: Tensor, choose: Tensor,
    tried: Sequence[dict[str, Any]], training: Training = Training(),
) -> Learned:  # fmt: skip
    """Give a model the exits that agree best with its last one, of several kinds.

    Args:
        states: a record of one pass.
        train, choose: the numbers of rows to learn from, and of others to compare kinds on.
        tried: fields of the config for each kind.
    """
    found = []
    for kind, each in product(tried, training.tried(len(train))):
        exits = trained(model, kind, states, train, each)
        recording = recorded(model, exits, states.select(choose))
        found.append(Learned(kind, exits, closeness(recording)))
    best = max(found, key=lambda each: each.mean_agreement)
    take(model, best)
    return best


def closeness(recording: Recording) -> list[float]:
    """How often each exit below the last agrees with it; of values, one minus the share of variance it misses."""
    logits = recording.evidence.logits
    if recording.problem_type != REGRESSION:
        return agreement(recording)[:, :-1].double().mean(0).tolist()
    missed = (logits[:, :-1] - logits[:, -1:]).square().mean((0, 2)) / logits[:, -1].var().clamp(min=1e-12)
    return (1 - missed).tolist()


def take(model: PFBerxitForSequenceClassification, learned: Learned) -> None:
    """Put the exits in the place of the model's own; the last one is the same."""
    model.exits = learned.exits.to(model.device, model.dtype).eval()
    rebuilt(model, **learned.kind)
    model._freeze()
    model._mark_backbone_keys()


# ---- learning --------------------------------------------------------------------------------------------------------


def new_exits(model: PFBerxitForSequenceClassification, kind: dict[str, Any]) -> Exits:
    """Untrained exits of a kind, in fp32, with the model's own last one."""
    config = copy.deepcopy(model.config)
    for name, value in {"exit_pooler_dim": None, **kind}.items():
        setattr(config, name, value)
    exits = Exits(config, config.encoder_config().hidden_size, len(model.exit_depths))
    weights = model.exits.state_dict()
    with torch.no_grad():
        for name in exits.kept_weights().values():
            exits.get_parameter(name).copy_(weights[name])
            exits.get_parameter(name).requires_grad_(False)
    exits.identity = model.exits.identity
    return exits


def trained(
    model: PFBerxitForSequenceClassification, kind: dict[str, Any], states: States, train: Tensor, training: Training
) -> Exits:
    """Exits of a kind that have learned from the last one's answers, rounded to the model's dtype."""
    problem_type = problem_type_of(model.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        exits = new_exits(model, kind)
        start_at_mean(exits, states.logits[train].float(), problem_type)
        learning = [parameter for parameter in exits.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=training.learning_rate, weight_decay=WEIGHT_DECAY)
        total = training.steps(len(train))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, total))
        for rows in batches(train, training):
            loss = loss_of(exits.train(), states, rows, problem_type, model.config)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return exits.to(model.dtype).eval()


def rate(step: int, total: int) -> float:
    """Rising for a tenth of the steps, then falling to zero."""
    return min((step + 1) / max(1.0, WARM_UP * total), (total - step) / max(1.0, (1 - WARM_UP) * total))


def batches(rows: Tensor, training: Training) -> Iterator[Tensor]:
    """The rows' numbers in a new order in each epoch."""
    for _ in range(training.epochs):
        yield from rows[torch.randperm(len(rows))].split(training.batch_size)


def loss_of(exits: Exits, states: States, rows: Tensor, problem_type: str, config: PreTrainedConfig) -> Tensor:
    """How far the exits are from the last one on some rows, summed; LTE heads learn where they differ."""
    part, teacher = states.select(rows), states.logits[rows].float()
    students = Evidence.stack([exits.judge(number, pooled) for number, pooled in enumerate(read(exits, part))])
    loss = distillation_losses(students.logits, teacher, problem_type, config).sum()
    if students.lte is not None:
        answers = teacher.argmax(-1) if problem_type == SINGLE_LABEL else teacher
        answers = (teacher > 0).float() if problem_type == MULTI_LABEL else answers
        loss = loss + lte_loss(students.lte, students.logits, answers, problem_type)
    return loss


def read(exits: Exits, states: States) -> Iterator[Tensor]:
    """What each exit below the last reads of the rows, in fp32."""
    for number, head in enumerate(exits.heads[:-1]):
        yield states.read(number, head.pooling).float()


@torch.no_grad()
def start_at_mean(exits: Exits, teacher: Tensor, problem_type: str) -> None:
    """Begin values and several labels at the last exit's mean, which may be far from 0."""
    if problem_type in (REGRESSION, MULTI_LABEL):
        for classifier in exits.classifiers[:-1]:
            classifier.bias.copy_(teacher.mean(0))


# ---- what they answer ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def recorded(
    model: PFBerxitForSequenceClassification, exits: Exits, states: States, labels: Tensor | None = None, **source: Any
) -> Recording:
    """What the exits answer on the record's rows, as a pass of the model would record it."""
    dtype = exits.classifiers[0].weight.dtype
    emitted = [exits.judge(i, pooled.to(dtype)) for i, pooled in enumerate(read(exits, states))]
    last = Evidence(states.logits, None if emitted[0].lte is None else torch.zeros_like(emitted[0].lte))
    evidence = Evidence.stack([*emitted, last])
    return Recording(
        Evidence(*(None if part is None else part.float() for part in evidence)), states.lengths, labels,
        states.exit_depths, problem_type_of(model.config), dict(source),
        label_names(model.config),
    )  # fmt: skip


def head_in_words(config: PreTrainedConfig) -> str:
    """The exits' heads in one line."""
    head = exit_heads(config, config.encoder_config(), 2)[0]
    what = f"the {POOLINGS[head.pooling].words} of the tokens"
    return f"{what}, linear" if head.dense is None else f"{what}, norm, {head.dense} {head.activation} units, linear"
