"""A recording that is made part by part, so that a run that was killed goes on behind its last part.

The parts, and what is in a batch with what, are the same whether a run was killed or not, and so are the bits.
"""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from ..model.evidence import Evidence
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .recording import Recording, provenance, record

PART = 512  # rows


def recorded_in_parts(
    model: PFBerxitForSequenceClassification, rows: Dataset, folder: str | os.PathLike, size: int = PART
) -> Recording:
    """The recording of a model on encoded rows, in their order; its parts are kept in `folder`, to be removed after.

    Parts of another model or of other rows that lie there are not read.
    """
    place = Path(folder) / key_of(model, rows, size)
    found = []
    for number, start in enumerate(range(0, len(rows), size)):
        path = place / f"{number}.safetensors"
        if not path.exists():
            record(model, rows.select(range(start, min(len(rows), start + size)))).save(path)
        found.append(Recording.load(path))
    return joined(found)


def forget(folder: str | os.PathLike) -> None:
    """Remove all parts that are kept in a folder."""
    shutil.rmtree(folder, ignore_errors=True)


def key_of(model: PFBerxitForSequenceClassification, rows: Dataset, size: int) -> str:
    """What parts are of: model, tokens and labels, and how large they are."""
    about = {**provenance(model), "size": size, "threads": torch.get_num_threads()}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    names = [name for name in ("input_ids", "token_type_ids", "labels") if name in rows.column_names]
    for batch in rows.select_columns(names).iter(1000):
        digest.update(json.dumps([batch[name] for name in names]).encode())
    return digest.hexdigest()[:24]


def joined(parts: list[Recording]) -> Recording:
    """Recordings of one model as one, behind each other."""
    evidence = Evidence(*map(in_a_row, zip(*(part.evidence for part in parts))))
    lengths, labels = in_a_row([part.lengths for part in parts]), in_a_row([part.labels for part in parts])
    assert lengths is not None
    return replace(parts[0], evidence=evidence, lengths=lengths, labels=labels)


def in_a_row(tensors: tuple[Tensor | None, ...] | list[Tensor | None]) -> Tensor | None:
    """One tensor of all, along the rows; None where there are none."""
    given = [each for each in tensors if each is not None]
    return torch.cat(given) if given else None
