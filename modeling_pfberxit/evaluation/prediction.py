"""Answers for rows of any number, written to a file as they are found: label, score and exit layer of each."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.files import Row, chunks
from ..data.outputs import GrowingFile, beside
from ..data.separators import separator_for
from ..data.survey import Source
from ..data.texts import CUT, has_texts, tokenise
from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.exit_policy import FULL_DEPTH, ExitPolicy, describe, resolve_policy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.streams import WINDOW
from ..model.validation import label_names, whole
from .recording import provenance
from .replay import answered
from .saved_model import load_model, tokens_read

ANSWER = ("label", "score", "exit_layer")


@dataclass
class Totals:
    """What a run did.

    Args:
        rows: answered in this run; `before`: in former ones, which it went on with.
        empty: rows without a text, whose answers are empty; `cut`: texts that were longer than what is read of them.
        unsure: rows that left without an answer, where the policy lets them.
        layers: executed, over all answered rows.
    """

    before: int
    rows: int = 0
    empty: int = 0
    cut: int = 0
    unsure: int = 0
    layers: int = 0
    started: float = field(default_factory=time.perf_counter)

    @property
    def rows_a_second(self) -> float:
        """Since the run began."""
        return self.rows / max(time.perf_counter() - self.started, 1e-9)


@dataclass(frozen=True)
class Predictor:
    """A model, and how it is asked.

    Args:
        policy: when rows exit.
        max_length: tokens of a text that are read.
        batch_size: rows that run through a layer together.
    """

    model: PFBerxitForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    policy: ExitPolicy = FULL_DEPTH
    max_length: int = 128
    batch_size: int = 32

    def __post_init__(self) -> None:
        whole(1)("batch_size", self.batch_size)

    @classmethod
    def load(
        cls, name: str, policy: ExitPolicy | dict[str, Any] | str | None = None, max_length: int | None = None,
        device: str | None = None, dtype: str | None = None, batch_size: int = 32,
    ) -> "Predictor":  # fmt: skip
        """A saved model, asked by a policy of its own or one that is given, as `load_model` and a call take them.

        Raises:
            ValueError, OSError: as there; a policy that the model does not have, a length that it does not take.
        """
        model, tokenizer = load_model(name, device, dtype)
        problem_type = problem_type_of(model.config)
        rule = resolve_policy(policy, model.config, model.exit_depths, problem_type) or FULL_DEPTH
        return cls(model, tokenizer, rule, tokens_read(model, tokenizer, max_length), batch_size)

    @property
    def in_words(self) -> str:
        """When rows exit, with labels by their names."""
        names = label_names(self.model.config)
        thresholds = {names[int(label)]: tau for label, tau in self.policy.label_thresholds or ()}
        return describe(replace(self.policy, label_thresholds=thresholds or None))

    def run(self, source: Source, output: str) -> Totals:
        """Write every row of a source with its answer to a file (.csv, .tsv, .jsonl), in their order.

        Raises:
            ValueError: the file is there, or a part of it from another run. The same run goes on with its own part.
        """
        renamed = beside(source.survey.columns, ANSWER)
        file = GrowingFile(output, [*renamed.values(), *ANSWER], self.identity(source))
        totals = Totals(before=file.rows)
        with tqdm(total=source.survey.rows, initial=file.rows, unit=" rows", desc="Predicting", disable=None) as bar:
            for rows in chunks(islice(source.read(), file.rows, None), WINDOW * self.batch_size):
                answers = self.answers(rows, source.names, totals)
                own = [{renamed[name]: value for name, value in row.items()} for row in rows]
                file.append([{**row, **dict(zip(ANSWER, answer))} for row, answer in zip(own, answers)])
                bar.update(len(rows))
        file.finish()
        return totals

    def identity(self, source: Source) -> dict[str, Any]:
        """All that answers depend on: a file is gone on with only by a run that has the same."""
        about = provenance(self.model)
        hashed = "weights_sha256" if about["weights_sha256"] else "model"
        kept = {name: about[name] for name in (hashed, "backbone_sha256", "dtype", "device")}
        asked = {"policy": self.policy.stated(), "max_length": self.max_length, "batch_size": self.batch_size}
        return {**kept, **asked, "texts": source.names, "input": source.survey.sha256}

    def answers(self, rows: Sequence[Row], names: Sequence[str], totals: Totals) -> list[tuple]:
        """Label, score and exit layer of each row; of one without a text none."""
        columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
        full = [number for number, kept in enumerate(has_texts(columns, names)) if kept]
        found: list[tuple] = [(None,) * len(ANSWER)] * len(rows)
        totals.rows, totals.empty = totals.rows + len(rows), totals.empty + len(rows) - len(full)
        if not full:
            return found
        tokens = tokenise(self.tokenizer, [[columns[name][i] for i in full] for name in names], self.max_length)
        totals.cut += sum(tokens.pop(CUT))
        encoded = [dict(zip(tokens, row)) for row in zip(*tokens.values())]
        output: Any = self.model.predict(encoded, self.policy, self.batch_size, progress=False)
        totals.unsure += int((~answered(output.logits)).sum())
        for number, answer in zip(full, in_words(self.model, output.logits.float(), output.exit_layer.tolist())):
            found[number] = answer
            totals.layers += answer[2]
        return found


def in_words(
    model: PFBerxitForSequenceClassification, logits: Tensor, layers: list[int]
) -> list[tuple[str | float, Any, int]]:
    """Label, score and exit layer of every row, from logits (N, C) and executed layers.

    One label: its name and probability. Several: their names, joined, and the probability of the least certain
    decision. A value: the value, and no score. A row that left as unsure: neither.
    """
    given = answered(logits).tolist()
    return [found if has else ("", None, found[2]) for has, found in zip(given, worded(model, logits, layers))]


def worded(
    model: PFBerxitForSequenceClassification, logits: Tensor, layers: list[int]
) -> list[tuple[str | float, Any, int]]:
    """`in_words` of rows that all have an answer."""
    names = label_names(model.config)
    problem_type = problem_type_of(model.config)
    if problem_type == REGRESSION:
        return [(joined_values(row), None, layer) for row, layer in zip(logits.tolist(), layers)]
    if problem_type == MULTI_LABEL:
        return list(zip(joined_labels(logits > 0, names), digits(logits.abs().sigmoid().amin(-1)), layers))
    best = torch.log_softmax(logits, dim=-1).exp().max(-1)
    return list(zip([names[number] for number in best.indices.tolist()], digits(best.values), layers))


def joined_labels(given: Tensor, names: Sequence[str]) -> list[str]:
    """The labels of each row, (N, C) of booleans, in one string; a list in JSON where names have every separator."""
    separator = separator_for(names)
    rows = [[name for name, has in zip(names, row) if has] for row in given.tolist()]
    return [json.dumps(row, ensure_ascii=False) if separator is None else separator.join(row) for row in rows]


def joined_values(row: Sequence[float]) -> float | str:
    """One value as a number, several in one string."""
    values = [float(f"{value:.6g}") for value in row]
    return values[0] if len(values) == 1 else ";".join(map(str, values))


def digits(values: Tensor) -> list[float]:
    """Numbers with six digits."""
    return [float(f"{value:.6g}") for value in values.tolist()]
