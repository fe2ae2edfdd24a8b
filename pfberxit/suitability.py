"""`pfberxit suitability`: whether an encoder has anything to gain, before any training."""

from argparse import ArgumentParser
from typing import Any

from .options import add_config, add_data

HELP = "whether an encoder has anything to gain, before any training"


def add_arguments(parser: ArgumentParser) -> None:
    """An encoder and some texts; labels are not read."""
    parser.add_argument("backbone", help="Hub id or folder of an encoder, minilm or mpnet")
    add_data(parser, labels=False)
    add_config(parser)
    parser.add_argument("--split", default="train", help="which rows (default: %(default)s); all: every row")
    parser.add_argument("--rows", type=int, default=400, help="rows at most")


def run(backbone: str, dataset: str, config: str | None, split: str, rows: int, columns: dict[str, Any]) -> None:
    """Print a bar for every layer of the bare encoder, from some of the texts."""
    import torch

    from modeling_pfberxit.data.readers import name_of
    from modeling_pfberxit.data.texts import encode_texts, load_texts
    from modeling_pfberxit.evaluation.recording import padded_batches
    from modeling_pfberxit.evaluation.suitability import suitability
    from modeling_pfberxit.model.modeling_pfberxit import PFBerxitForSequenceClassification
    from modeling_pfberxit.model.validation import whole
    from modeling_pfberxit.studies.named_encoders import named_backbone
    from modeling_pfberxit.training.finetuning import new_tokenizer

    whole(1)("rows", rows)
    backbone = named_backbone(backbone)
    texts = load_texts(dataset, config, **columns, split=split)
    model, tokenizer = PFBerxitForSequenceClassification.from_backbone(backbone).eval(), new_tokenizer(backbone)
    some = texts.rows.shuffle(seed=0).select(range(min(rows, len(texts))))
    encoded = encode_texts(some, texts.names, tokenizer, 128)
    batches = padded_batches(encoded, torch.arange(len(encoded)), 32, model.config.pad_token_id or 0)
    found = suitability(model, list(batches))
    print(
        f"{config or name_of(dataset)}, {len(encoded)} rows: how much of the last layer's states each layer foretells\n"
    )
    for layer, share in enumerate(found, start=1):
        print(f"layer {layer:2d} {'█' * round(40 * share):40s} {share:.2f}")
    half_way = found[(len(found) - 1) // 2]
    print(f"\nHalf-way up: {half_way:.2f}. Of two encoders, that with more has more room to leave early.")
