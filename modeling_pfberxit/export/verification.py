"""A file held against its model, right after it was made: the same layers and labels, row by row and in a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..evaluation.replay import answered, same_answers
from ..model.criteria import fits
from ..model.exit_policy import ExitPolicy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.streams import pad_rows
from ..model.validation import refuse
from .parts import examples, per_row

Row = dict[str, Tensor]  # a row's tokens, without padding
CLOSE = 1e-4  # logits
NEAR = 1e-5  # a score so far from tau, or less, may fall on its other side by rounding
TIES = 0.005  # rows that may be so near
DRAWN = 24  # rows that are made where none are given
SIZES = (1, 7, 32)  # of batches


class Compared(NamedTuple):
    """How a file's answers compare with the model's, over all rows, settings and sizes of a batch."""

    rows: int
    near: int  # another layer or answer, and a score of the row is tau but for rounding
    layers_apart: int  # another layer, and no score is near
    answers_apart: int  # the same layer and another label, a decision that flips, a value that is not close
    farthest: float  # logits, where the layer is the same

    def and_then(self, other: Compared) -> Compared:
        """Both together."""
        counts = [one + more for one, more in zip(self[:4], other[:4])]
        return Compared(counts[0], counts[1], counts[2], counts[3], max(self.farthest, other.farthest))


NOTHING = Compared(0, 0, 0, 0, 0.0)


def run(session: Any, batch: Row, policy: ExitPolicy) -> tuple[np.ndarray, np.ndarray]:
    """A file's logits and exit layers for a batch."""
    rows = len(batch["input_ids"])
    threshold = policy.threshold if isinstance(policy.threshold, float) else 0.0
    given = {"tau": np.full(rows, threshold, np.float32), "patience": np.full(rows, policy.patience, np.int64)}
    given |= {name: value.numpy() for name, value in batch.items()}
    names = {each.name for each in session.get_inputs()}
    return session.run(None, {name: value for name, value in given.items() if name in names})


def made_up(model: PFBerxitForSequenceClassification) -> list[Row]:
    """Rows of drawn tokens, of mixed length."""
    draw = torch.Generator().manual_seed(0)
    size = model.backbone.get_input_embeddings().num_embeddings
    lengths = torch.randint(3, 25, (DRAWN,), generator=draw).tolist()
    return [{"input_ids": torch.randint(5, size, (length,), generator=draw)} for length in lengths]


def batches(rows: Sequence[Row], size: int, model: PFBerxitForSequenceClassification) -> Iterator[Row]:
    """Rows in their order, padded on the right, under the names of the model's inputs."""
    names = examples(model)
    for start in range(0, len(rows), size):
        batch = pad_rows(rows[start : start + size], model.config.pad_token_id or 0)
        batch.setdefault("token_type_ids", torch.zeros_like(batch["input_ids"]))
        yield {name: batch[name] for name in names}


def settings(policy: ExitPolicy, model: PFBerxitForSequenceClassification) -> list[ExitPolicy]:
    """The policy itself, and more and less careful ones that the file serves as well."""
    others = [policy, *(replace(policy, patience=patience) for patience in (1, 3))]
    if isinstance(policy.threshold, float) and per_row(policy):
        others += [replace(policy, threshold=policy.threshold * share) for share in (0.7, 1.5)]
    return [each for each in others if fits(each, model.exit_depths, problem_type_of(model.config))]


@torch.no_grad()
def compare(
    session: Any, model: PFBerxitForSequenceClassification, rows: Sequence[Row], policies: Iterable[ExitPolicy],
    sizes: Iterable[int] = SIZES,
) -> Compared:  # fmt: skip
    """Every row under every policy, in batches of these sizes."""
    found = NOTHING
    for policy in policies:
        expected = answers(model, rows, policy)
        for size in sizes:
            parts = [run(session, batch, policy) for batch in batches(rows, size, model)]
            logits, layers = (torch.as_tensor(np.concatenate(part)) for part in zip(*parts))
            found = found.and_then(compared(model, rows, policy, (logits, layers), expected))
    return found


def answers(model: PFBerxitForSequenceClassification, rows: Sequence[Row], policy: ExitPolicy) -> tuple[Tensor, Tensor]:
    """The model's own logits (N, C) and layers (N,)."""
    parts = [model(**batch, exit_policy=policy, return_dict=True) for batch in batches(rows, max(SIZES), model)]
    return torch.cat([part.logits for part in parts]), torch.cat([part.exit_layer for part in parts])


def compared(
    model: PFBerxitForSequenceClassification, rows: Sequence[Row], policy: ExitPolicy, found: tuple[Tensor, Tensor],
    expected: tuple[Tensor, Tensor],
) -> Compared:  # fmt: skip
    """Logits and layers of a file, (N, C) and (N,), beside the model's."""
    (logits, layers), (own, its) = found, expected
    same = layers == its
    differs = same & ~same_answers(logits, own, problem_type_of(model.config), CLOSE)
    suspects = (~same | differs).nonzero().squeeze(1)
    near = torch.zeros_like(same)
    near[suspects] = is_near(model, [rows[number] for number in suspects.tolist()], policy, layers[suspects])
    there = same & ~near & (answered(logits) | answered(own))  # of rows without an answer in both, nothing is apart
    apart = (logits - own).abs().amax(-1)[there].nan_to_num(torch.inf)  # NaN is as far as can be
    farthest = float(apart.max()) if len(apart) else 0.0
    return Compared(len(rows), int(near.sum()), int((~same & ~near).sum()), int((differs & ~near).sum()), farthest)


def is_near(
    model: PFBerxitForSequenceClassification, rows: Sequence[Row], policy: ExitPolicy, layers: Tensor
) -> Tensor:
    """Whether the model, at a tau a hair lower or higher, lets rows leave after these layers, (N,)."""
    if not len(rows) or policy.threshold is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    below, above = (answers(model, rows, moved(policy, hair))[1] for hair in (-NEAR, NEAR))
    return (below != above) & ((layers == below) | (layers == above))


def moved(policy: ExitPolicy, by: float) -> ExitPolicy:
    """The policy with its thresholds so much higher."""
    tau = policy.threshold
    if isinstance(tau, tuple):
        return replace(policy, threshold=tuple(max(each + by, 0.0) for each in tau))
    return replace(policy, threshold=max((tau or 0.0) + by, 0.0))


def check_same(found: Compared, path: str) -> None:
    """Refuse to write a file that differs from its model."""
    if found.layers_apart or found.answers_apart or found.near > TIES * found.rows or found.farthest > CLOSE:
        refuse("onnx", path, f"the model's equal: of {found.rows} rows {found.layers_apart} leave after another layer, "
               f"{found.answers_apart} get another answer, {found.near} lie within {NEAR:g} of tau, logits are up to "
               f"{found.farthest:.2g} apart; no file is written")  # fmt: skip
