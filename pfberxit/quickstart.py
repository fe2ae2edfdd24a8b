"""`pfberxit quickstart`: fine-tune, exit early, save, load back."""

from argparse import ArgumentParser
from typing import Any

from .options import add_data

HELP = "the whole story on one small data set"


def add_arguments(parser: ArgumentParser) -> None:
    """Data, an encoder, a system, and how long to train."""
    parser.add_argument("--backbone", help="Hub id or folder of an encoder, minilm or mpnet (default: minilm)")
    add_data(parser)
    parser.add_argument("--config", help="its configuration; of support_desk: intent, topics or urgency")
    parser.add_argument("--system", default="pf-berxit", help="a published system; an unknown name lists them")
    parser.add_argument("--output", default="runs/quickstart", help="where the adapter folder goes")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--held-out", type=int, default=100, help="training rows kept back to choose thresholds on")
    parser.add_argument("--seed", type=int, default=0)


def run(**options: Any) -> None:
    """Print the whole run; every number is measured in it."""
    from modeling_pfberxit.studies.quickstart import quickstart

    quickstart(**options, say=print)
