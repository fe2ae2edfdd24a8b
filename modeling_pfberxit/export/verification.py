"""A file held against its model, right after it was made: the same layers and labels, row by row and in a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..evaluation.replay import same_answers
from ..model.criteria import fits
from ..model.exit_policy import ExitPolicy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .parts import examples

CLOSE = 1e-4  # logits
TIES = 0.005  # rows of which a score equals tau but for rounding
DRAWN = 24  # rows that are made where none are given


class Compared(NamedTuple):
    """How a file's answers compare with the model's, over all rows and settings."""

    rows: int
    layers_apart: int
    answers_apart: int  # another label, a decision that flips, a value that is not close
    farthest: float  # logits, where the layer is the same


def run(session: object, batch: Mapping[str, Tensor], policy: ExitPolicy) -> tuple[np.ndarray, np.ndarray]:
    """A file's logits and exit layers for a batch."""
    rows = len(batch["input_ids"])
    threshold = 0.0 if isinstance(policy.threshold, tuple) or policy.threshold is None else policy.threshold
    given = {"tau": np.full(rows, threshold, np.float32), "patience": np.full(rows, policy.patience, np.int64)}
    given |= {name: value.numpy() for name, value in batch.items()}
    names = {each.name for each in session.get_inputs()}  # type: ignore[attr-defined]  # onnxruntime has no types
    return session.run(None, {name: value for name, value in given.items() if name in names})  # type: ignore[attr-defined]


def made_up(model: PFBerxitForSequenceClassification) -> dict[str, Tensor]:
    """Rows of drawn tokens, of mixed length."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 25, (DRAWN, 1), generator=draw)
    mask = (torch.arange(24) < lengths).long()
    size = model.backbone.get_input_embeddings().num_embeddings
    ids = torch.randint(5, size, (DRAWN, 24), generator=draw) * mask
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return {name: every[name] for name in examples(model)}


def settings(policy: ExitPolicy, model: PFBerxitForSequenceClassification) -> list[ExitPolicy]:
    """The policy itself, and more and less careful ones that the file serves as well."""
    if isinstance(policy.threshold, tuple) or policy.threshold is None:
        others = [policy]
    else:
        others = [replace(policy, threshold=policy.threshold * share) for share in (1.0, 0.7, 1.5)]
    others += [replace(policy, patience=patience) for patience in (1, 3)]
    return [each for each in others if fits(each, model.exit_depths, problem_type_of(model.config))]


@torch.no_grad()
def compare(
    session: object, model: PFBerxitForSequenceClassification, batch: Mapping[str, Tensor],
    policies: Iterable[ExitPolicy], sizes: Iterable[int] = (1, 7),
) -> Compared:  # fmt: skip
    """Every row under every policy, in batches of these sizes."""
    rows, layers, answers, farthest = 0, 0, 0, 0.0
    problem_type = problem_type_of(model.config)
    for policy in policies:
        expected = model(**batch, exit_policy=policy)
        for size in sizes:
            for start in range(0, len(batch["input_ids"]), size):
                part = {name: value[start : start + size] for name, value in batch.items()}
                logits, exits = (torch.as_tensor(found) for found in run(session, part, policy))
                own, same = expected.logits[start : start + size], exits == expected.exit_layer[start : start + size]
                rows, layers = rows + len(exits), layers + int((~same).sum())
                answers += int((~same_answers(logits, own, problem_type, CLOSE)).sum())
                apart = (logits - own).abs().amax(-1)[same].nan_to_num(torch.inf)  # NaN is as far as can be
                farthest = max(farthest, float(apart.max()) if len(apart) else 0.0)
    return Compared(rows, layers, answers, farthest)


def check_same(found: Compared, path: str) -> None:
    """Refuse to write a file that differs from its model."""
    if found.layers_apart > TIES * found.rows or found.farthest > CLOSE:
        refuse("onnx", path, f"the model's equal: of {found.rows} rows {found.layers_apart} leave after another layer, "
               f"logits are up to {found.farthest:.2g} apart; no file is written")  # fmt: skip
