"""Texts without labels, from wherever `load_task` reads; and texts as tokens, with those that were cut counted."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..model.validation import refuse
from . import read_support_desk
from .columns import choose_texts, named_label
from .readers import read_splits

logger = logging.get_logger(__name__)
ALL = "all"  # in place of a split's name: the rows of every split, in their order


@dataclass(frozen=True)
class Texts:
    """Rows with a text each, and the columns it is in.

    Args:
        names: one column, or two for pairs.
        label: the label's column, or one for each label, where the user named it; unread.
        rows: all columns of the data set, memory-mapped, in its order, without rows that have no text.
        split: which rows these are.
    """

    names: tuple[str, ...]
    label: str | tuple[str, ...] | None
    rows: Dataset
    split: str

    def __len__(self) -> int:
        return len(self.rows)


def load_texts(
    dataset: str | os.PathLike,
    config: str | None = None,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | Sequence[str] | None = None,
    split: str | None = None,
) -> Texts:
    """Texts without labels, of any size: they are read from disk as they are needed.

    Args:
        dataset, config: as for `load_task`: a file, a folder, a glob, `-`, a Hub id.
        text, pair: the columns of the text and the second text, where they are not certain by name.
        label: a column that is no text; it must be there, and is not read.
        split: which rows; needed where there are several. `all`: every row.

    Raises:
        ValueError, OSError: the data set is not there; a column or a split that it does not have or that is not
            certain; no row has a text. Rows without a text are left out, and this is said.
    """
    data = read_any(os.fspath(dataset), config, (text, pair, label))
    split, rows = choose_split(data, split)
    known = None if label is None else named_label(rows.features, label)
    names = choose_texts(rows.features, text, pair, known)
    kept = rows.filter(lambda batch: has_texts(batch, names), batched=True)
    if len(kept) < len(rows):
        logger.warning(f"{len(rows) - len(kept)} of {len(rows)} rows have no text and are left out.")
    if not len(kept):
        refuse("dataset", os.fspath(dataset), f"one with a text in {', '.join(names)}")
    return Texts(names, known, kept, split)


def read_any(dataset: str, config: str | None, named: Iterable[Any] = ()) -> DatasetDict:
    """The splits of a data set; `support_desk` is the one in the package."""
    if dataset == "support_desk":
        return DatasetDict({split: Dataset.from_list(read_support_desk(split)) for split in ("train", "test")})
    flat = [name for each in named if each for name in ([each] if isinstance(each, str) else each)]
    return read_splits(dataset, config, flat)


def choose_split(data: DatasetDict, split: str | None) -> tuple[str, Dataset]:
    """The split that is named, the only one, or `all` of them as one; with its name."""
    if split == ALL:
        return split, concatenate_datasets(list(data.values()))
    if split is None and len(data) == 1:
        split = next(iter(data))
    if split is None or split not in data:
        refuse("split", split, f"one of {', '.join(data)}, or all")
    return split, data[split]


def has_texts(batch: dict[str, list], names: Sequence[str]) -> list[bool]:
    """Whether each row has all its texts."""
    return [all(map(is_text, row)) for row in zip(*(batch[name] for name in names))]


def is_text(value: Any) -> bool:
    """Whether a value has a character that is no space."""
    return isinstance(value, str) and not value.isspace() and value != ""


# ---- tokens ----------------------------------------------------------------------------------------------------------


NO_LIMIT = 1 << 20  # tokens; tokenizers and encoders that state no limit take more than any text has
CUT = "cut"  # beside the tokens: whether the row's texts were longer
PIECE = 1 << 20  # characters that are tokenised at once: a whole document's tokens take fifty times the document's room


def tokenise(tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], max_length: int) -> dict[str, list]:
    """Columns of tokens for one or two columns of texts, cut to `max_length` tokens, and `cut`, whether each was."""
    every: dict[str, list] = defaultdict(list)
    for rows in pieces(columns):
        for name, values in tokens_of(tokenizer, [column[rows] for column in columns], max_length).items():
            every[name] += values
    return dict(every)


def pieces(columns: Sequence[Sequence[str]]) -> Iterator[slice]:
    """Which rows are tokenised together: as many as have `PIECE` characters, one at least."""
    start, size = 0, 0
    for number, row in enumerate(zip(*columns)):
        if (size := size + sum(map(len, row))) > PIECE and number > start:
            yield slice(start, number)
            start, size = number, sum(map(len, row))
    yield slice(start, None)


def tokens_of(tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]], max_length: int) -> dict[str, list]:
    """`tokenise` of one piece."""
    tokens = dict(tokenizer(*map(list, columns), truncation=True, max_length=max_length))
    tokens[CUT] = [len(ids) >= max_length for ids in tokens["input_ids"]]
    full = [number for number, reaches in enumerate(tokens[CUT]) if reaches]
    if full:
        whole = tokenizer(*([column[number] for number in full] for column in columns), verbose=False)
        for number, ids in zip(full, whole["input_ids"]):
            tokens[CUT][number] = len(ids) > max_length
    return tokens


def encode_texts(
    rows: Dataset, names: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, desc: str = "Tokenising"
) -> Dataset:
    """Tokens of every row and no other column, memory-mapped; how many texts were cut is said."""

    def tokens(batch: dict[str, list[str]]) -> dict[str, list]:
        """Columns of texts -> columns of tokens."""
        return tokenise(tokenizer, [batch[name] for name in names], max_length)

    rows = rows.select_columns(list(names))
    if not len(rows):
        return Dataset.from_dict({"input_ids": [], "attention_mask": []})
    encoded = rows.map(tokens, batched=True, remove_columns=list(names), desc=desc)
    report_cut(sum(encoded[CUT]), len(rows), max_length)
    return encoded.remove_columns(CUT)


def report_cut(cut: int, rows: int, max_length: int) -> None:
    """Say how many texts were longer than what is read of them, if any."""
    if cut:
        logger.warning(f"{cut} of {rows} texts are longer than {max_length} tokens and were cut to that.")


def length_of(tokenizer: PreTrainedTokenizerBase, longest: float, asked: int | None = None) -> int:
    """How many tokens of a text are read: as asked for, or what the tokenizer was saved with; never above `longest`.

    Raises:
        ValueError: more than the encoder has positions for, or too few for a token between the special ones.
    """
    if asked is not None and not 3 <= asked <= longest:
        refuse("max_length", asked, f"between 3 and {longest}, what the encoder takes")
    return int(min(longest, asked or tokenizer.model_max_length, NO_LIMIT))
