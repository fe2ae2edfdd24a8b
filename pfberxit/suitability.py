"""`pfberxit suitability`: whether an encoder has anything to gain, before any training."""

from argparse import ArgumentParser
from typing import Any

from .options import add_data

HELP = "whether an encoder has anything to gain, before any training"


def add_arguments(parser: ArgumentParser) -> None:
    """An encoder and some texts; labels are not read."""
    parser.add_argument("backbone", help="Hub id or folder of an encoder, minilm or mpnet")
    add_data(parser)
    parser.add_argument("--config", help="its configuration, e.g. a GLUE task; labels are not looked at")
    parser.add_argument("--rows", type=int, default=400, help="of the training split")


def run(backbone: str, dataset: str, config: str | None, rows: int, columns: dict[str, Any]) -> None:
    """Print a bar for every layer of the bare encoder, from the texts of some training rows."""
    import torch

    from modeling_pfberxit.data.tasks import encode, load_task
    from modeling_pfberxit.evaluation.recording import padded_batches
    from modeling_pfberxit.evaluation.suitability import suitability
    from modeling_pfberxit.studies.named_encoders import named_backbone
    from modeling_pfberxit.training.finetuning import new_model, new_tokenizer

    backbone = named_backbone(backbone)
    task, data = load_task(dataset, config, **columns)
    model, tokenizer = new_model(backbone, task).eval(), new_tokenizer(backbone)
    encoded = encode(task, data["train"].shuffle(seed=0).select(range(min(rows, len(data["train"])))), tokenizer)
    batches = padded_batches(encoded, torch.arange(len(encoded)), 32, model.config.pad_token_id or 0)
    found = suitability(model, list(batches))
    print(f"{task.name}, {len(encoded)} rows: how much of the last layer's states each layer foretells\n")
    for layer, share in enumerate(found, start=1):
        print(f"layer {layer:2d} {'█' * round(40 * share):40s} {share:.2f}")
    half_way = found[(len(found) - 1) // 2]
    print(f"\nHalf-way up: {half_way:.2f}. Of two encoders, that with more has more room to leave early.")
