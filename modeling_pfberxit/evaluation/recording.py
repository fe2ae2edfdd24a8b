"""Recordings: the evidence of all exits of a model on some rows, so that any policy can be replayed without the model.

One full-depth pass makes one; a safetensors file keeps it with its origin. Texts are not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ..model.criteria import numbered
from ..model.evidence import Evidence
from ..model.exit_policy import FULL_DEPTH, ExitPolicy
from ..model.identity import arithmetic
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import replacing
from ..model.streams import as_row, pad_rows
from ..model.validation import label_names, refuse
from .replay import ScoreBook


@dataclass(frozen=True)
class Recording:
    """The evidence of every exit on N rows."""

    evidence: Evidence  # logits (N, E, C); LTE scores, NSP (N, E) and distances (N, E, L, K) where exits emit them
    lengths: Tensor  # (N,) tokens of each row
    labels: Tensor | None  # (N,) or (N, C)
    exit_depths: list[int]  # the layers that have an exit
    problem_type: str
    source: dict[str, Any] = field(default_factory=dict)  # model, encoder, data, versions
    label_names: list[str] = field(default_factory=list)  # of classes or labels, (C,); empty: not known

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        return self.exit_depths[-1]

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def scores(self) -> ScoreBook:
        """The scores that rules make of the evidence, each worked out when a policy first needs it."""
        return ScoreBook(self.evidence, self.problem_type)

    def replay(self, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
        """The answers (N, C) and executed layers (N,) under a policy."""
        names = self.label_names or [str(number) for number in range(self.evidence.logits.shape[-1])]
        return self.scores.of(policy).decide(numbered(policy, names), self.exit_depths)

    @property
    def names(self) -> list[str]:
        """What the model calls its classes or labels, or their numbers where that was not recorded."""
        return self.label_names or [f"label {number}" for number in range(self.evidence.logits.shape[-1])]

    @property
    def known_labels(self) -> Tensor:
        """The labels, (N,) or (N, C).

        Raises:
            ValueError: a recording without.
        """
        return refuse("recording", "no labels", "one of labelled rows") if self.labels is None else self.labels

    def select(self, rows: Tensor) -> Recording:
        """Some of the rows, by their numbers."""
        part = Evidence(*(None if kind is None else kind[rows] for kind in self.evidence))
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, evidence=part, lengths=self.lengths[rows], labels=labels)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Recording, Recording]:
        """Two disjoint parts, drawn at random: one to choose a policy on, one to report it on."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        first = round(share * len(self))
        if not 0 < first < len(self):
            refuse("share", share, f"one that leaves rows on both sides of {len(self)}")
        return self.select(order[:first]), self.select(order[first:])

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a safetensors file, in one move."""
        parts = {"lengths": self.lengths, **{f"evidence.{k}": v for k, v in self.evidence._asdict().items()}}
        parts["labels"] = self.labels
        about = {name: getattr(self, name) for name in ("exit_depths", "problem_type", "source", "label_names")}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: values.contiguous() for name, values in parts.items() if values is not None}
        with replacing(path) as draft:
            save_file(kept, draft, {"recording": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Recording:
        """Read it back.

        Raises:
            OSError: there is no such file, or it is truncated or no recording.
        """
        try:
            with safe_open(path, framework="pt") as file:
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
                about = json.loads((file.metadata() or {})["recording"])
        except (SafetensorError, KeyError) as error:
            raise OSError(f"{path}: truncated, or not a recording ({error}).") from error
        evidence = Evidence(*(parts.get(f"evidence.{name}") for name in Evidence._fields))
        return cls(evidence, parts["lengths"], parts.get("labels"), **about)


@torch.inference_mode()
def record(
    model: PFBerxitForSequenceClassification,
    rows: Dataset | Iterable[dict[str, Tensor]],
    batch_size: int = 128,
    progress: bool = True,
    **source: Any,
) -> Recording:
    """Run a model at full depth over encoded rows and keep its exits' evidence, in the rows' order.

    Args:
        rows: a data set with `input_ids` and, if known, `labels`, as `data.tasks.encode` makes it; or batches.
        progress: whether a bar shows it, on a terminal.
        source: facts of the data to keep, such as `dataset="nyu-mll/glue", config="sst2", split="train"`.
    """
    model.eval()
    parts, order, total = [], None, None
    if isinstance(rows, Dataset):
        order = torch.tensor([len(ids) for ids in rows["input_ids"]]).argsort(descending=True, stable=True)
        total = -(-len(rows) // batch_size)
        rows = padded_batches(rows, order, batch_size, model.config.pad_token_id or 0)
    for batch in tqdm(rows, desc="Recording", leave=False, disable=None if progress else True, total=total):
        inputs = {name: values.to(model.device) for name, values in batch.items() if name != "labels"}
        output = model(**inputs, exit_policy=FULL_DEPTH, return_dict=True)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        emitted = [getattr(output, f"exit_{part}") for part in Evidence._fields]
        parts.append((*emitted, mask.sum(1), batch.get("labels")))
    joined = [None if kind[0] is None else torch.cat([part.cpu() for part in kind]) for kind in zip(*parts)]
    if order is not None:
        joined = [None if kind is None else kind[order.argsort()] for kind in joined]
    *emitted, lengths, labels = joined
    evidence = Evidence(*(None if kind is None else kind.float() for kind in emitted))
    return Recording(
        evidence, lengths, labels, model.exit_depths, problem_type_of(model.config, labels),
        {**provenance(model), **source},
        label_names(model.config),
    )  # fmt: skip


def padded_batches(rows: Dataset, order: Tensor, size: int, pad: int) -> Iterator[dict[str, Tensor]]:
    """Batches of encoded rows by their numbers, (N,), `size` of them each, with `labels` where rows have them."""
    for numbers in order.split(size):
        part = rows.select(numbers.tolist())
        batch = pad_rows([as_row("row", row) for row in part], pad)
        if "labels" in rows.column_names:
            batch["labels"] = torch.tensor(part["labels"])
        yield batch


def provenance(model: PFBerxitForSequenceClassification) -> dict[str, Any]:
    """The model's origin and hashes, and the versions and device it ran with."""
    config = model.config
    return {
        "model": config.name_or_path,
        "weights_sha256": config.weights_sha256,
        "system": config.system,
        "backbone": config.base_model_name_or_path,
        "backbone_sha256": config.base_model_sha256,
        "dtype": arithmetic(model),
        "device": str(model.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
