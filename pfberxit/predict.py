"""`pfberxit predict`: answers for a file of texts, as a file."""

from argparse import ArgumentParser
from typing import Any

from .options import add_execution, add_model, add_policy, add_source, add_split, add_text_columns

HELP = "answers for a file of texts of any size, written as CSV or JSON Lines"


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, texts, where the answers go, and how the model is asked."""
    add_model(parser)
    add_source(parser)
    add_text_columns(parser, label=False)
    add_split(parser, "which rows; needed where the data set has several splits; all: every row")
    parser.add_argument(
        "--output", required=True, metavar="FILE",
        help="csv, tsv or jsonl: the input's columns, then label, score, exit_layer; a killed run is gone on with",
    )  # fmt: skip
    add_policy(parser)
    add_execution(parser)
    parser.add_argument("--batch-size", type=int, default=32, help="rows that run through a layer together")


def run(
    model: str, dataset: str, config: str | None, columns: dict[str, Any], split: str | None, output: str,
    policy: str | None, max_length: int | None, device: str | None, dtype: str | None, batch_size: int,
) -> None:  # fmt: skip
    """Write the answers in the rows' order, then print how many there are, how fast they came, what was cut."""
    from modeling_pfberxit.data.outputs import check_new
    from modeling_pfberxit.data.survey import open_rows
    from modeling_pfberxit.evaluation.certifying import origin
    from modeling_pfberxit.evaluation.checking import void
    from modeling_pfberxit.evaluation.prediction import Predictor
    from modeling_pfberxit.evaluation.saved_model import asked_policy
    from modeling_pfberxit.model.evidence import ABSTAIN
    from modeling_pfberxit.model.validation import label_names

    check_new(output)
    predictor = Predictor.load(model, asked_policy(policy), max_length, device, dtype, batch_size)
    loaded, rule = predictor.model, predictor.policy
    source = open_rows(dataset, config, **columns, split=split)
    print(f"{source.survey.rows:,} rows, text in {' and '.join(source.names)}; {predictor.in_words}", flush=True)
    facts = {"max_length": predictor.max_length, **origin(loaded)}
    for name, kept in void(loaded.config.operating_points, rule, facts, label_names(loaded.config)).items():
        other = ", ".join(f"{fact}={value}, here {facts[fact]}" for fact, value in kept.items())
        print(f"The certificate {name} does not hold for these answers: it was made at {other}.", flush=True)
    found = predictor.run(source, output)
    if found.before:
        print(f"Went on behind row {found.before:,}, where a former run had stopped.")
    if found.empty:
        print(f"{found.empty:,} rows have no text, and no answer.")
    if found.cut:
        print(f"{found.cut:,} texts are longer than {predictor.max_length} tokens and were cut to that.")
    if found.unsure and rule.answer == ABSTAIN:
        print(f"{found.unsure:,} rows left as unsure: their label is empty, their exit_layer is set.")
    elif found.unsure:
        print(
            f"{found.unsure:,} rows have no answer, their label is empty: NaN came of the weights, or of their dtype."
        )
    mean = found.layers / max(found.rows - found.empty, 1)
    print(
        f"Wrote {output}: {found.rows:,} rows, {found.rows_a_second:,.0f} a second; "
        f"{mean:.2f} of {loaded.exit_depths[-1]} layers on average."
    )
