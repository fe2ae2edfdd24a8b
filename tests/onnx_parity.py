"""Rows x rules x sizes of a batch: a file's layers and labels beside the model's, on real texts.

    python tests/onnx_parity.py MODEL texts.csv --text sentence --rows 2000 --rules entropy divergence_v1

MODEL: a saved model, or `encoder:FOLDER` for random adapters and exits over an encoder. Each rule is run at a threshold
that lets about half of the rows leave early. Slow: that is as many answers as rows x rules x sizes.
"""

import argparse
from dataclasses import replace

import torch
from tiny import enliven
from transformers import AutoTokenizer

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.data.texts import encode_texts, load_texts
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.export.made import one_file
from modeling_pfberxit.export.segments import segments_of
from modeling_pfberxit.export.storage import opened
from modeling_pfberxit.export.verification import SIZES, batches, check_same, compare
from modeling_pfberxit.model.criteria import CRITERIA, able, rule_of
from modeling_pfberxit.model.exits import EMITTED_BY
from modeling_pfberxit.model.losses import problem_type_of

ENCODER = "encoder:"


def loaded(name: str) -> tuple:
    """A model and its tokenizer."""
    folder = name.removeprefix(ENCODER)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    if folder == name:
        return PFBerxitForSequenceClassification.from_pretrained(folder).eval(), tokenizer
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(
        folder, num_labels=3, use_lte=True, use_prototypes=True, problem_type="single_label_classification"
    )
    enliven(model)
    return model.eval(), tokenizer


def middle(recording, name: str) -> ExitPolicy:
    """A policy of a rule at the median of its scores."""
    policy = ExitPolicy(name, threshold=1.0, patience=1, window=2)
    if name == "appointed":
        return replace(policy, appointed_layer=recording.exit_depths[len(recording.exit_depths) // 2])
    if not rule_of(policy).needs_threshold(recording.problem_type):
        return policy
    values = recording.scores.of(policy).quantiles(11)
    return replace(policy, threshold=float(max(values[len(values) // 2], 0.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--text")
    parser.add_argument("--split")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--rules", nargs="*", default=list(CRITERIA))
    options = parser.parse_args()
    model, tokenizer = loaded(options.model)
    texts = load_texts(options.texts, text=options.text, split=options.split)
    chosen = texts.rows.select(range(min(options.rows, len(texts))))
    encoded = encode_texts(chosen, texts.names, tokenizer, options.max_length)
    rows = [{"input_ids": torch.tensor(row)} for row in encoded["input_ids"]]
    emitted = [field for field in EMITTED_BY if getattr(model.config, field)]
    recording = record(model, batches(rows, 32, model))
    segments = segments_of(model)
    for name in [name for name in able(problem_type_of(model.config), emitted) if name in options.rules]:
        policy = middle(recording, name)
        layers = recording.replay(policy)[1].double().mean()
        found = compare(opened(one_file(segments, policy)), segments.model, rows, [policy], SIZES)
        print(f"{name:14} {layers:5.2f} layers  {found}", flush=True)  # noqa: T201
        check_same(found, name)


if __name__ == "__main__":
    main()
