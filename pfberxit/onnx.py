"""Runs what `pfberxit export` wrote, on numpy, onnxruntime and tokenizers alone; a copy stands beside every file.

>>> classify = Classifier("model.onnx")
>>> classify("where is my parcel")
[{"label": "delivery", "score": 0.93}]
>>> classify.predict(["where is my parcel", "thanks!"]).exit_layer
array([4, 2])
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

METADATA = "pfberxit"
CHUNK = 1024  # rows of a file that are in memory at a time
Text = str | tuple[str, str] | dict[str, str]  # a text, two of them, or {"text": ..., "text_pair": ...}
Asked = str | dict[str, float] | None  # an operating point by name, or numbers; None: the file's own


class Answers(NamedTuple):
    """Of N texts, in their order."""

    logits: np.ndarray  # (N, C)
    exit_layer: np.ndarray  # (N,)


def refuse(name: str, value: Any, allowed: str) -> NoReturn:
    """Raise the one-line error that every check ends in."""
    raise ValueError(f"{name}={value!r}: must be {allowed}.")


class Classifier:
    """A text classifier in one file, each text leaving after the layer that its rule allows.

    Args:
        path: an ONNX file written by `pfberxit export`, its tokenizer.json beside it or one folder above.
        threads: of one layer's work; None: as onnxruntime chooses.

    Raises:
        ValueError, OSError: no such file, a damaged one, or one that something else wrote.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.enable_mem_pattern = False  # planned anew in every branch, it costs more than it gives
        options.log_severity_level = 3  # errors: of branches it says which of its own short cuts it does not take
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own kinds
            raise ValueError(f"{path}: no ONNX file, or a damaged one ({str(error).splitlines()[0]}).") from error
        stored = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        if stored is None:
            refuse("path", str(path), "a file that `pfberxit export` wrote")
        self.metadata: dict[str, Any] = json.loads(stored)
        self.inputs = {each.name for each in self.session.get_inputs()}
        self.tokenizer = read_tokenizer(path.parent, self.metadata)

    # ---- answers ---------------------------------------------------------------------------------------------------

    def __call__(
        self, texts: Text | list[Text], exit_policy: Asked = None, batch_size: int = 1, **options: Any
    ) -> list:  # fmt: skip
        """Labels and scores as `pipeline("text-classification")` gives them.

        Args:
            texts: one or a list of them.
            exit_policy: as for `predict`; where it is given, answers have their `exit_layer`.
            batch_size: texts that run together.
            options: `top_k`, how many labels of each text, None: all.
        """
        if unknown := options.keys() - {"top_k"}:
            refuse("options", sorted(unknown), "top_k")
        several = isinstance(texts, list)
        found = self.predict(texts if isinstance(texts, list) else [texts], exit_policy, batch_size)
        rows = [self.labelled(row, options.get("top_k", 1)) for row in found.logits]
        if exit_policy is not None:
            rows = [[{**each, "exit_layer": int(layer)} for each in row] for row, layer in zip(rows, found.exit_layer)]
        if "top_k" not in options:
            return [row[0] for row in rows]
        return rows if several else rows[0]

    def predict(self, texts: Sequence[Text], exit_policy: Asked | list[Asked] = None, batch_size: int = 32) -> Answers:
        """Logits and layers of any number of texts.

        Args:
            exit_policy: the name of an operating point, or `threshold` and `patience`; None: the file's own. A list
                has one for each text.
            batch_size: texts that run together; 1 where the file is for single rows.
        """
        if isinstance(texts, (str, dict)):
            refuse("texts", texts, "a list of texts")
        given = [as_input(text) for text in texts]
        asked = exit_policy if isinstance(exit_policy, list) else [exit_policy] * len(given)
        if len(asked) != len(given):
            refuse("exit_policy", f"{len(asked)} policies", f"one, or one for each of {len(given)} texts")
        if not given:
            return Answers(np.zeros((0, len(self.metadata["id2label"])), np.float32), np.zeros(0, np.int64))
        encoded = self.tokenizer.encode_batch(given)
        order = np.argsort([len(each) for each in encoded], kind="stable")
        size = 1 if self.metadata["single"] else max(1, batch_size)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        answers = [self.run(self.batch([encoded[row] for row in part]), [asked[row] for row in part]) for part in parts]
        back = np.argsort(order, kind="stable")
        return Answers(*(np.concatenate(part)[back] for part in zip(*answers)))

    def predict_file(
        self, source: str | os.PathLike, output: str | os.PathLike, text: str = "text", pair: str | None = None,
        exit_policy: Asked = None, batch_size: int = 32,
    ) -> int:  # fmt: skip
        """Write the rows of a file with `label`, `score` and `exit_layer`, in their order; how many there are.

        A column of the input that has one of these names is called `input_label` and so on.

        Args:
            source: CSV or TSV with a header, JSON Lines, or plain text with a text in each line; any of them may be
                packed by gzip (`.csv.gz`).
            output: CSV, TSV or JSON Lines; not there yet.
            text, pair: columns of the texts.
        """
        output, rows, written = Path(output), read_rows(Path(source), (text, pair)), 0
        if output.exists() or output.suffix not in WRITTEN:
            refuse("output", str(output), f"a file that is not there yet and ends in {', '.join(WRITTEN)}")
        columns: dict[str, str] = {}
        draft = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            with open(draft, "w", encoding="utf-8", newline="") as file:
                while chunk := list(islice(rows, CHUNK)):
                    columns = columns or renamed(chunk)
                    texts = [row[text] if pair is None else (row[text], row[pair]) for row in chunk]
                    found = self.predict(texts, exit_policy, batch_size)
                    named = (self.labelled(logits, 1)[0] for logits in found.logits)
                    answers = [{**under(columns, row), **each, "exit_layer": int(layer)}
                               for row, each, layer in zip(chunk, named, found.exit_layer)]  # fmt: skip
                    write_rows(file, output, [*columns.values(), *ANSWER], answers, first=not written)
                    written += len(chunk)
            os.replace(draft, output)
        finally:
            draft.unlink(missing_ok=True)
        return written

    def run(self, batch: dict[str, np.ndarray], exit_policy: Asked | list[Asked] = None) -> Answers:
        """The answers to token ids and mask, (B, n) each, padded on the right.

        Raises:
            ValueError: another rank, too long, padded on the left, an id the encoder does not know.
        """
        self.check(batch)
        rows = len(batch["input_ids"])
        points = [self.point(each) for each in exit_policy] if isinstance(exit_policy, list) else (
            [self.point(exit_policy)] * rows)  # fmt: skip
        tau, patience = zip(*points)
        every = {**batch, "tau": np.array(tau, np.float32), "patience": np.array(patience, np.int64)}
        if "token_type_ids" not in every:
            every["token_type_ids"] = np.zeros_like(batch["input_ids"])
        found = self.session.run(None, {name: value for name, value in every.items() if name in self.inputs})
        return Answers(*found)

    # ---- what a request asks ---------------------------------------------------------------------------------------

    def point(self, exit_policy: Asked) -> tuple[float, int]:
        """Tau and patience of a request.

        Raises:
            ValueError: a name or field this file does not have; a number the rule cannot work with.
        """
        asked = exit_policy or {}
        if isinstance(asked, str):
            points = self.metadata["operating_points"]
            if asked not in points:
                refuse("exit_policy", asked, f"one of this file's operating points: {sorted(points) or 'none'}")
            asked = {name: value for name, value in points[asked].items() if name in self.metadata["reads"]}
        if unknown := asked.keys() - set(self.metadata["reads"]):
            refuse("exit_policy", sorted(unknown), f"among {self.metadata['reads']}: the rest is built into the file")
        policy = {"threshold": 0.0, "patience": 1, **self.metadata["policy"], **asked}
        tau = 0.0 if isinstance(policy["threshold"], (list, tuple)) else policy["threshold"]
        if not isinstance(tau, (int, float)) or not 0 <= tau < math.inf:
            refuse("threshold", tau, "a finite number of at least 0")
        if not isinstance(policy["patience"], int) or not 1 <= policy["patience"] <= self.metadata["most_patience"]:
            refuse("patience", policy["patience"], f"a whole number from 1 to {self.metadata['most_patience']}")
        return tau, policy["patience"]

    def check(self, batch: dict[str, np.ndarray]) -> None:
        """Refuse arrays that the encoder cannot read."""
        ids, mask, most = batch["input_ids"], batch["attention_mask"], self.metadata["longest_input"]
        if ids.ndim != 2 or 0 in ids.shape or any(value.shape != ids.shape for value in batch.values()):
            refuse("input_ids", ids.shape, "of two dimensions, rows and tokens, none of them 0, and the others alike")
        if any(value.dtype.kind not in "iu" for value in batch.values()):
            refuse("input_ids", str(ids.dtype), "whole numbers, and the others too")
        if most is not None and ids.shape[1] > most:
            refuse("input_ids", f"rows of {ids.shape[1]} tokens", f"at most {most} tokens")
        if not mask[:, 0].all():
            refuse("attention_mask", "0 at a row's first token", "1 there: pad on the right")
        size = self.metadata["vocabulary"]
        if ids.size and (ids.min() < 0 or (size is not None and ids.max() >= size)):
            refuse("input_ids", int(ids.min() if ids.min() < 0 else ids.max()), f"from 0 to {size - 1}")
        if self.metadata["single"] and len(ids) != 1:
            refuse("input_ids", f"{len(ids)} rows", "one row: the file was exported with --single")

    def batch(self, encoded: list[Encoding]) -> dict[str, np.ndarray]:
        """Encoded texts as arrays, padded to the longest."""
        rows, longest = len(encoded), max(len(each) for each in encoded)
        ids = np.full((rows, longest), self.metadata["padding"]["id"], np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, each in enumerate(encoded):
            ids[row, : len(each)], mask[row, : len(each)] = each.ids, 1
            types[row, : len(each)] = each.type_ids if self.metadata["token_types"] else 0
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    # ---- scores ----------------------------------------------------------------------------------------------------

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Logits (..., C) as `pipeline` shows them: probabilities of classes or labels, or values."""
        kind, logits = self.metadata["activation"], logits.astype(np.float64)
        if kind == "none":
            return logits
        if kind == "sigmoid":
            return 1 / (1 + np.exp(-logits))
        raised = np.exp(logits - logits.max(-1, keepdims=True))
        return raised / raised.sum(-1, keepdims=True)

    def labelled(self, logits: np.ndarray, top_k: int | None) -> list[dict[str, Any]]:
        """The labels of the highest logits (C,), the highest in front; None: all. An empty one where they are NaN."""
        if np.isnan(logits).any():
            return [{"label": "", "score": None}]
        names, scores = self.metadata["id2label"], self.scores(logits)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": names[number], "score": float(scores[number])} for number in order]


def as_input(text: Any) -> str | tuple[str, str]:
    """A text, or two, as tokenizers take them."""
    if isinstance(text, dict) and "text" in text:
        second = text.get("text_pair")
        text = text["text"] if second is None else (text["text"], second)
    pair = isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(each, str) for each in text)
    if not (isinstance(text, str) or pair):
        refuse("texts", text, "texts, pairs of texts, or {'text': ..., 'text_pair': ...}")
    return tuple(text) if pair else text


def read_tokenizer(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer, which cuts texts to the file's length."""
    name = "tokenizer.json"
    path = next((place / name for place in (folder, folder.parent) if (place / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder / name}: the tokenizer belongs beside the model.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # of no kind of its own
        raise ValueError(f"{path}: no tokenizer, or a damaged one ({error}).") from error
    tokenizer.enable_truncation(metadata["max_length"])
    tokenizer.no_padding()
    return tokenizer


# ---- files -----------------------------------------------------------------------------------------------------------

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".txt")
PACKED = ".gz"
WRITTEN = (*SEPARATORS, ".jsonl")
ANSWER = ("label", "score", "exit_layer")
csv.field_size_limit((1 << 31) - 1)  # a document in a cell may be longer than the module's 128 KiB


def read_rows(path: Path, needed: Iterable[str | None]) -> Iterator[dict[str, Any]]:
    """The rows of a file, checked as they come.

    Raises:
        ValueError: another kind of file; a row without a text, by its number.
    """
    kind = Path(path.stem).suffix if path.suffix == PACKED else path.suffix
    if kind not in (*SEPARATORS, *LINES):
        refuse(
            "source", str(path), f"a file that ends in {', '.join((*SEPARATORS, *LINES))}, {PACKED} behind it or not"
        )
    number, opened = 0, gzip.open if path.suffix == PACKED else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="" if kind in SEPARATORS else None) as file:
            for number, row in enumerate(parsed(file, kind), start=1):
                check_row(row, number, needed)
                yield row
    except (csv.Error, EOFError, UnicodeError, gzip.BadGzipFile, json.JSONDecodeError, zlib.error) as error:
        raise ValueError(f"{path}: damaged behind row {number} ({error}).") from error


def parsed(file: IO[str], kind: str) -> Iterator[Any]:
    """The rows of an open file of a kind, one after the other."""
    if kind in SEPARATORS:
        yield from csv.DictReader(file, delimiter=SEPARATORS[kind], strict=True)
        return
    for line in file:
        yield {"text": line.rstrip("\n")} if kind == ".txt" else json.loads(line)


def check_row(row: Any, number: int, needed: Iterable[str | None]) -> None:
    """Refuse a row without a text in each column that is needed, or with more cells than the header has names."""
    for name in needed:
        if name is not None and not (isinstance(row, dict) and isinstance(row.get(name), str)):
            refuse(f"row {number}", row, f"one with a text in {name!r}")
    if None in row:  # where a table's reader puts cells that the header has no name for
        refuse(f"row {number}", row, "one with as many cells as the header")


def renamed(rows: list[dict[str, Any]]) -> dict[str, str]:
    """By the columns of some rows, in their order, what they are called beside the answers."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    found: dict[str, str] = {}
    for name in columns:
        new = name
        while new in ANSWER or new != name and (new in columns or new in found.values()):
            new = f"input_{new}"
        found[name] = new
    return found


def under(columns: dict[str, str], row: dict[str, Any]) -> dict[str, Any]:
    """A row under its columns' new names; refuses one with a column that the first rows do not have."""
    if unknown := [name for name in row if name not in columns]:
        refuse("row", row, f"one of the columns {', '.join(map(str, columns))}, without {unknown}")
    return {new: row.get(name) for name, new in columns.items()}


def write_rows(file: Any, path: Path, columns: list[str], rows: list[dict[str, Any]], first: bool) -> None:
    """Add rows to a file; a header in front of the first ones."""
    if path.suffix not in SEPARATORS:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    writer = csv.DictWriter(file, columns, delimiter=SEPARATORS[path.suffix])
    if first:
        writer.writeheader()
    writer.writerows(rows)
