"""`pfberxit export`: one ONNX file that exits by itself, its tokenizer and its runner beside it."""

from argparse import ArgumentParser
from pathlib import Path

from .options import add_model, add_policy

HELP = "one ONNX file that exits early by itself, to be run without this package and without torch"


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, where the file goes, and for which rule it is made."""
    add_model(parser)
    parser.add_argument("--onnx", required=True, metavar="FILE", help="where it goes; tokenizer.json and classifier.py "
                        "are written beside it")  # fmt: skip
    add_policy(parser, "the rule that is built in, its threshold and patience as defaults: a name, or JSON")
    parser.add_argument("--single", action="store_true", help="for one text at a time, a little faster")
    parser.add_argument(
        "--int8", action="store_true", help="a second file, ..._int8.onnx, of 8-bit weights: smaller and faster; how "
        "often its answers differ is measured",
    )  # fmt: skip
    parser.add_argument("--max-length", type=int, help="tokens of a text (default: as the tokenizer was saved)")


def run(model: str, onnx: str, policy: str | None, single: bool, int8: bool, max_length: int | None) -> None:
    """Write the file, held against the model, and print what is in it."""
    from modeling_pfberxit.evaluation.saved_model import asked_policy, load_model
    from modeling_pfberxit.export.files import export_file
    from modeling_pfberxit.model.exit_policy import describe

    loaded, tokenizer = load_model(model, "cpu")
    runner = Path(__file__).with_name("onnx.py")
    made = export_file(loaded, tokenizer, onnx, asked_policy(policy), max_length, single, int8, runner)
    found = made.compared
    print(f"Wrote {made.path}, {made.path.stat().st_size / 2**20:,.1f} MB: {describe(made.policy)}")
    print(
        f"Held against the model on {found.rows:,} rows: {found.layers_apart} left after another layer, "
        f"{found.answers_apart} got another answer, logits up to {found.farthest:.1g} apart."
    )
    if made.int8 is not None:
        far = made.int8.get("farthest_as_float32")
        same = "{label_as_float32} get the same answer" if far is None else f"values are up to {far:.2g} apart"
        words = (
            f"In 8 bits, of {{rows}} drawn rows {{layer_as_float32}} leave after the same layer, {same}, and beside "
            "others {layer_alone_as_in_batch} leave as they do alone. Its thresholds are those of float32, and no "
            "certificate speaks of it."
        )
        print(words.format(**made.int8))
