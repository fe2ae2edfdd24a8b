"""Texts on which a file is held against its model, or its threshold certified: for that, those it has not used."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.texts import encode_texts, load_texts
from ..evaluation.certifying import fresh_texts
from ..evaluation.used_texts import hashes_of, remember
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .evidence import in_two
from .verification import Row


class Given(NamedTuple):
    """Tokens of texts, the texts' hashes, (N,), and how many were left out, by why."""

    rows: list[Row]
    numbers: Tensor
    left_out: dict[str, int]


def read_texts(
    folder: str, model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, max_length: int,
    dataset: str, config: str | None, split: str | None, columns: dict[str, Any], unused: bool = False,
) -> Given:  # fmt: skip
    """The texts of a data set.

    Args:
        unused: each once, without those that a saved model has used.
    """
    left_out: dict[str, int] = {}
    if unused:
        fresh = fresh_texts(folder, dataset, config, split, columns, model)
        rows, names, numbers, left_out = fresh.rows, fresh.names, fresh.numbers, fresh.left_out
    else:
        texts = load_texts(dataset, config, **columns, split=split)
        rows, names, numbers = texts.rows, texts.names, hashes_of(texts.rows, texts.names)
    if not len(rows):
        without = ", ".join(f"{number} {reason}" for reason, number in left_out.items())
        refuse("texts", dataset, f"one with texts that the model has not used; left out: {without}")
    encoded = encode_texts(rows, names, tokenizer, max_length)
    kept = [name for name in ("input_ids", "token_type_ids") if name in encoded.column_names]
    tokens = [{name: torch.tensor(row[name]) for name in kept} for row in encoded]
    return Given(tokens, numbers, left_out)


def remember_texts(folder: str, given: Given) -> None:
    """Note with a saved model that texts chose and certified a setting; of one on the Hub nothing is noted."""
    if os.path.isdir(folder):
        choose, certify = in_two(len(given.rows))
        remember(folder, choose=given.numbers[choose], certify=given.numbers[certify])
