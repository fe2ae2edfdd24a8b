"""`pfberxit retrofit`: a fine-tuned classifier and texts without labels; its answers, faster, with a certificate."""

from argparse import ArgumentParser
from functools import partial
from typing import Any

from .options import NONE_PASSED, add_execution, add_policy, add_promise, add_texts

HELP = "make a fine-tuned classifier exit early, from texts without labels, and certify it"


def add_arguments(parser: ArgumentParser) -> None:
    """A classifier, texts like those it will be given, and what is to be promised."""
    parser.add_argument("model", help="folder or Hub id of a fine-tuned ...ForSequenceClassification")
    add_texts(parser)
    add_promise(parser)
    add_policy(parser, "a rule, as JSON, whose threshold is to be chosen")
    add_execution(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the three parts of the texts, and of learning")
    parser.add_argument(
        "--whole", action="store_true", help="save the classifier's weights, too, not a reference to it"
    )
    parser.add_argument("--output", default="runs/faster", help="a folder without a model (default: %(default)s)")


def run(
    model: str, dataset: str, config: str | None, columns: dict[str, Any], split: str | None, output: str,
    whole: bool, **options: Any,
) -> None:  # fmt: skip
    """Print what is done and found; ends with an exit code of its own where no setting passes."""
    from datasets import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    from modeling_pfberxit.training.retrofitted import retrofit

    disable_progress_bars()
    disable_progress_bar()  # one bar is enough: that of the pass
    found = retrofit(
        model,
        dataset,
        output,
        config=config,
        columns=columns,
        split=split,
        adapter_only=not whole,
        say=partial(print, flush=True),
        **options,
    )
    for each in found.certificates:
        print(f"\n{each.name}: {each.in_words()}")
        if each.passed:
            print(f"Saves {100 * each.saved:.0f} % of the layers.")
    for name, value in found.scores.items():
        print(f"Score of {name} on the certifying texts: {value:.4f}")
    if not found.passed:
        print(f"\nNothing passed: {output} runs to full depth.")
        raise SystemExit(NONE_PASSED)
    print(f"\nWrote {output}; pfberxit predict {output} NEW_TEXTS --output answers.csv")
