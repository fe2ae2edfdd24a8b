"""Which split is evaluated on; one that is made where there is none; rows that two splits share. All of it is said."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from datasets import Dataset, DatasetDict
from transformers.utils import logging

from ..model.validation import refuse

logger = logging.get_logger(__name__)

HELD_OUT, HELD_OUT_SEED = 0.2, 0  # of a data set with no split to evaluate on
EVALUATION = ("validation", "dev", "valid", "val", "test")


def hold_out(rows: Dataset, classes: Sequence[Hashable] | None = None) -> DatasetDict:
    """A fifth of the rows, drawn with seed 0, as `validation`, the others as `train`: the same rows every time.

    Args:
        classes: of every row, (N,); each then gives a fifth of its own rows, as near as whole rows allow.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        refuse("dataset", f"{len(rows)} row", "one with a split to evaluate on, or with rows enough to hold some out")
    held = drawn(len(rows), max(1, round(HELD_OUT * len(rows))), HELD_OUT_SEED, classes)
    mask = np.zeros(len(rows), dtype=bool)
    mask[held] = True
    how = "" if classes is None else ", a fifth of every class"
    logger.warning(f"No split to evaluate on: {len(held)} of {len(rows)} rows, drawn with seed 0{how}, are validation.")
    return DatasetDict(train=rows.select(np.flatnonzero(~mask)), validation=rows.select(np.flatnonzero(mask)))


def drawn(rows: int, count: int, seed: int, classes: Sequence[Hashable] | None = None) -> np.ndarray:
    """The numbers of `count` of the rows, drawn at random; by classes, each in proportion, with one row left at least.

    A class of a single row is left whole, and this is said.
    """
    order = np.random.default_rng(seed).permutation(rows)
    if classes is None:
        return np.sort(order[:count])
    sizes = Counter(classes)
    if single := [str(name) for name, size in sizes.items() if size == 1]:
        logger.warning(f"One row alone, so none to evaluate on, of: {', '.join(sorted(single))}.")
    quota = quotas(sizes, count / rows, count)
    chosen = []
    for row in order:
        if quota[classes[row]] > 0:
            quota[classes[row]] -= 1
            chosen.append(row)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def quotas(sizes: Counter, share: float, count: int) -> dict[Hashable, int]:
    """How many rows each class gives: its share rounded down, then one more for the largest rests."""
    exact = {name: share * size for name, size in sizes.items()}
    quota = {name: min(int(value), sizes[name] - 1) for name, value in exact.items()}
    rests = sorted(exact, key=lambda name: (quota[name] - exact[name], str(name)))
    for name in rests:
        if sum(quota.values()) < count and quota[name] + 1 < sizes[name]:
            quota[name] += 1
    return quota


def shared_rows(first: Dataset, second: Dataset, texts: Sequence[str]) -> int:
    """How many rows of the second split have the texts of some row of the first."""
    seen = set(keys(first, texts))
    return sum(key in seen for key in keys(second, texts))


def keys(rows: Dataset, texts: Sequence[str]) -> list[int]:
    """A number for each row's texts, the same where they are."""
    return [
        hash(row)
        for batch in rows.select_columns(list(texts)).iter(1000)
        for row in zip(*(batch[name] for name in texts))
    ]


def report_shared(data: DatasetDict, evaluation: str, texts: Sequence[str]) -> None:
    """Say how many rows to evaluate on have texts that are trained on as well, if there are any."""
    if "train" not in data or evaluation == "train":
        return
    if number := shared_rows(data["train"], data[evaluation], texts):
        logger.warning(f"{number} of {len(data[evaluation])} rows of {evaluation} have texts that are in train, too.")
