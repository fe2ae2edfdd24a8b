"""Rows x rules x batches: a file's layers and labels beside the model's, on real texts, as a table.

    python tests/onnx_parity.py MODEL glue --config sst2 mrpc qnli --split train --rows 2000 --output FOLDER

MODEL: a saved model; `encoder:FOLDER`, random adapters and exits over an encoder; `albert` or `modernbert`, random
weights of a shape, for texts of `--tokenizer`. Each rule is run at a threshold that lets about half of the rows leave
early, `--points`, operating points of the model, as they are: in batches of 1, 7 and 32, of rows of one length, which
need no padding, and of any length, which do. `--parts 6` deals the rows out over these six, `--parts 2` over padded and
not; else all rows go through each.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tiny import enliven
from torch import nn
from transformers import AlbertConfig, AutoTokenizer, ModernBertConfig

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.data.texts import encode_texts, load_texts
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.evaluation.tables import table
from modeling_pfberxit.export.made import one_file
from modeling_pfberxit.export.parts import emitting
from modeling_pfberxit.export.segments import segments_of
from modeling_pfberxit.export.storage import opened
from modeling_pfberxit.export.verification import (
    NEAR,
    NOTHING,
    SIZES,
    Row,
    answers,
    batches,
    check_same,
    compared,
    moved,
    run,
)  # fmt: skip
from modeling_pfberxit.model.criteria import CRITERIA, able, rule_of
from modeling_pfberxit.model.exit_policy import operating_point
from modeling_pfberxit.model.losses import problem_type_of

SHAPES = {
    "albert": AlbertConfig(embedding_size=128, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                           num_hidden_layers=12, vocab_size=30522),
    "albert-narrow": AlbertConfig(embedding_size=32, hidden_size=128, num_attention_heads=4, intermediate_size=512,
                                  num_hidden_layers=12, vocab_size=30522),
    "modernbert": ModernBertConfig(hidden_size=256, num_attention_heads=4, intermediate_size=384, num_hidden_layers=6,
                                   vocab_size=30522, pad_token_id=0, local_attention=16),
}  # fmt: skip
ENCODER = "encoder:"
MORE = 5  # tokens of padding that a row alone is given


# ---- what is compared ------------------------------------------------------------------------------------------------


def loaded(name: str) -> PFBerxitForSequenceClassification:
    """A saved model; or random adapters and exits that emit all that any rule reads, over an encoder."""
    if name not in SHAPES and not name.startswith(ENCODER):
        return PFBerxitForSequenceClassification.from_pretrained(name).eval()
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(
        SHAPES.get(name, name.removeprefix(ENCODER)), num_labels=3, problem_type="single_label_classification",
        use_lte=True, use_prototypes=True,
    )  # fmt: skip
    enliven(model)
    return model.eval()


def rows_of(options: argparse.Namespace) -> list[Row]:
    """As many tokenised texts of each part of the data, sorted by length."""
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or options.model.removeprefix(ENCODER))
    rows: list[Row] = []
    for number, config in enumerate(options.config, start=1):
        texts = load_texts(options.data, config, split=options.split)
        chosen = texts.rows.select(range(number * options.rows // len(options.config) - len(rows)))
        encoded = encode_texts(chosen, texts.names, tokenizer, options.max_length)
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded.column_names]
        rows += [{name: torch.tensor(row[name]) for name in names} for row in encoded]
    return sorted(rows, key=lambda row: len(row["input_ids"]))


def parts_of(rows: list[Row], size: int, padded: bool) -> Iterator[list[int]]:
    """The numbers of the rows of every batch: of one length, or as chance has it."""
    if padded:
        order = np.random.default_rng(0).permutation(len(rows))
        yield from (order[start : start + size].tolist() for start in range(0, len(rows), size))
        return
    lengths = np.array([len(row["input_ids"]) for row in rows])
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        yield from (same[start : start + size].tolist() for start in range(0, len(same), size))


def middle(recording: Recording, name: str) -> ExitPolicy:
    """A policy of a rule at the median of its scores."""
    policy = ExitPolicy(name, threshold=1.0, patience=1, window=2)
    if name == "appointed":
        return replace(policy, appointed_layer=recording.exit_depths[len(recording.exit_depths) // 2])
    if not rule_of(policy).needs_threshold(recording.problem_type):
        return policy
    values = recording.scores.of(policy).quantiles(11)
    return replace(policy, threshold=float(max(values[len(values) // 2], 0.0)))


def near(recording: Recording, policy: ExitPolicy) -> int:
    """How many rows have a score within a hair of tau."""
    if not rule_of(policy).needs_threshold(recording.problem_type):
        return 0
    below, above = (recording.replay(moved(policy, hair))[1] for hair in (-NEAR, NEAR))
    return int((below != above).sum())


def answered_by(session, model, rows: list[Row], policy: ExitPolicy, size: int, padded: bool):
    """A file's logits (N, C) and layers (N,), in the rows' order."""
    numbers, parts = list(parts_of(rows, size, padded)), []
    for part in numbers:
        (batch,) = batches([rows[number] for number in part], size, model)
        if padded and size == 1:
            batch = {name: nn.functional.pad(value, (0, MORE)) for name, value in batch.items()}
        parts.append(run(session, batch, policy))
    back = np.argsort(np.concatenate(numbers))
    return tuple(torch.as_tensor(np.concatenate(part)[back]) for part in zip(*parts))


# ---- the table -------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--config", nargs="+", default=[None])
    parser.add_argument("--split")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--tokenizer")
    parser.add_argument("--rules", nargs="*", default=list(CRITERIA))
    parser.add_argument("--points", nargs="*", default=[])
    parser.add_argument("--parts", type=int, choices=[1, 2, 6], default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, rows = loaded(options.model), rows_of(options)
    recording, segments = record(model, batches(rows, 32, model)), segments_of(model)
    lines = []
    rules = [name for name in able(problem_type_of(model.config), emitting(model)) if name in options.rules]
    policies = {name: middle(recording, name) for name in rules}
    policies |= {name: operating_point(name, model.config) for name in options.points}
    for name, policy in policies.items():
        lines.append({**line_of(segments, recording, rows, policy, options.parts), "rule": name})
        print(lines[-1], flush=True)  # noqa: T201
    if options.output:
        written(lines, options)


def line_of(segments, recording: Recording, rows: list[Row], policy: ExitPolicy, parts: int) -> dict:
    """What one rule's file answers, beside the model."""
    model, session = segments.model, opened(one_file(segments, policy))
    expected, found = answers(model, rows, policy), NOTHING
    for number, (size, padded) in enumerate(product(SIZES, (False, True))):
        some = slice(number % parts, None, parts)
        its = answered_by(session, model, rows[some], policy, size, padded)
        theirs = expected[0][some], expected[1][some]
        found = found.and_then(compared(model, rows[some], policy, its, theirs))
    check_same(found, policy.criterion)
    left = expected[1].double().mean().item()
    return {"rule": policy.criterion, "layers": round(left, 2), "rows": len(rows), "within": near(recording, policy),
            "answers": found.rows, **found._asdict() | {"rows": len(rows)}}  # fmt: skip


def written(lines: list[dict], options: argparse.Namespace) -> None:
    """The table as Markdown and as JSON."""
    titles = ["rule", "mean layers", "rows within 1e-5 of tau", "answers", "another layer", "another answer",
              "tau within rounding", "logits apart"]  # fmt: skip
    names = ("rule", "layers", "within", "answers", "layers_apart", "answers_apart", "near")
    cells = [[*(f"{line[name]:,}" if name == "answers" else str(line[name]) for name in names),
              f"{line['farthest']:.1e}"] for line in lines]  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".md").write_text(table(titles, cells) + "\n", encoding="utf-8")
    options.output.with_suffix(".json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
