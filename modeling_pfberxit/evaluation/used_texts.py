"""Which texts a saved model has used, as hashes: a certificate needs texts that neither trained nor chose anything.

The first 64 bits of a sha256 tell texts apart. Who knows a text can see that it was used; nobody can read one back.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..model.persistence import replacing
from ..model.validation import one_of

FILE = "used_texts.safetensors"  # beside the model's config
PURPOSES = ("train", "choose", "certify")  # what exits learned from, what chose a rule, what was read to certify it
Text = str | Sequence[str]


def hashes(texts: Iterable[Text]) -> Tensor:
    """One number for each text, or pair of texts, (N,) of int64; equal for equal texts alone."""
    return torch.tensor([hash_of(text) for text in texts], dtype=torch.int64)


def hashes_of(rows: Dataset, names: Sequence[str]) -> Tensor:
    """One number for each row's text in one column, or pair of texts in two, (N,)."""
    columns = [rows[name] for name in names]
    return hashes(columns[0] if len(columns) == 1 else zip(*columns, strict=True))


def hash_of(text: Text) -> int:
    """The first eight bytes of its sha256, as a signed number."""
    parts = [text] if isinstance(text, str) else text
    return int.from_bytes(hashlib.sha256("\x1f".join(parts).encode()).digest()[:8], "big", signed=True)


def fingerprint(numbers: Tensor) -> str:
    """A name for a set of texts, whatever their order, from their hashes."""
    return hashlib.sha256(numbers.unique().numpy().tobytes()).hexdigest()[:16]


def first_of_each(numbers: Tensor) -> Tensor:
    """(N,) True where a text comes for the first time."""
    values, which = numbers.unique(return_inverse=True)
    place = torch.arange(len(numbers))
    return place == torch.full_like(values, len(numbers)).scatter_reduce(0, which, place, "amin")[which]


def used(folder: str | os.PathLike) -> dict[str, Tensor]:
    """The hashes of the texts a saved model has used, by purpose; empty where none are known.

    Raises:
        OSError: the file is damaged.
    """
    path = Path(folder) / FILE
    try:
        return load_file(path) if path.exists() else {}
    except SafetensorError as error:
        raise OSError(f"{path}: truncated, or not of used texts ({error}).") from error


def remember(folder: str | os.PathLike, **texts: Tensor) -> None:
    """Add hashes by purpose (`train`, `choose`, `certify`) to those a saved model has, in one move."""
    known = used(folder)
    for purpose, numbers in texts.items():
        one_of(*PURPOSES)("purpose", purpose)
        known[purpose] = torch.cat([known.get(purpose, numbers[:0]), numbers]).unique()
    trained = weights_of(folder) if "train" in texts else stamp(folder)
    with replacing(Path(folder) / FILE) as draft:
        save_file(known, draft, None if trained is None else {"trained": trained})


def knows_training(folder: str | os.PathLike) -> bool:
    """Whether it is known what trained the weights that a folder has now: they may have learned from others since."""
    return "train" in used(folder) and stamp(folder) in (None, weights_of(folder))


def weights_of(folder: str | os.PathLike) -> str | None:
    """The hashes of a saved model's weights, as its config has them."""
    path = Path(folder) / "config.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("weights_sha256") if path.exists() else None
    return json.dumps(found, sort_keys=True) if found else None


def stamp(folder: str | os.PathLike) -> str | None:
    """The hashes of the weights that the remembered texts trained; None where they are not known."""
    path = Path(folder) / FILE
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("trained")


def is_used(folder: str | os.PathLike, numbers: Tensor) -> dict[str, Tensor]:
    """For each purpose that is known, which of the hashes (N,) were used for it, (N,)."""
    return {purpose: torch.isin(numbers, known) for purpose, known in used(folder).items()}
