"""`pfberxit export`: one ONNX file that exits by itself, its tokenizer and its runner beside it."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from .options import NONE_PASSED, add_config, add_model, add_policy, add_split, add_text_columns

HELP = "one ONNX file that exits early by itself, to be run without this package and without torch"


def add_arguments(parser: ArgumentParser) -> None:
    """A saved model, where the file goes, for which rule it is made, and texts it is held against the model on."""
    add_model(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--onnx", metavar="FILE", help="where it goes; tokenizer.json and classifier.py are written "
                       "beside it")  # fmt: skip
    where.add_argument("--hub", metavar="FOLDER", help="a folder to upload instead: onnx/model.onnx, of tokens alone, "
                       "for `transformers.js`, onnx/model_adjustable.onnx, tokenizer, config, a card")  # fmt: skip
    add_policy(parser, "the rule that is built in, its threshold and patience as defaults: a name, or JSON")
    parser.add_argument("--single", action="store_true", help="for one text at a time, a little faster")
    parser.add_argument(
        "--int8", action="store_true", help="a second file, ..._int8.onnx, of 8-bit weights: smaller and faster; how "
        "often its answers differ is measured",
    )  # fmt: skip
    parser.add_argument("--max-length", type=int, help="tokens of a text (default: as the tokenizer was saved)")
    parser.add_argument("--texts", metavar="DATA", help="texts on which the file is held against the model (default: "
                        "drawn tokens); with --differ, texts the model has not used")  # fmt: skip
    add_config(parser)
    add_text_columns(parser, label=False)
    add_split(parser, "which rows of --texts; needed where there are several splits; all: every row")
    parser.add_argument("--differ", type=float, metavar="SHARE", help="choose the threshold of --int8 on --texts and "
                        "certify that so many of its answers at most differ from full depth's in float32")  # fmt: skip
    parser.add_argument("--confidence", type=float, help="of that (default: 0.95)")


def run(
    model: str, onnx: str | None, hub: str | None, policy: str | None, single: bool, int8: bool,
    max_length: int | None, texts: str | None, config: str | None, columns: dict[str, Any], split: str | None,
    differ: float | None, confidence: float | None,
) -> None:  # fmt: skip
    """Write the file, held against the model, and print what is in it."""
    from modeling_pfberxit.evaluation.saved_model import asked_policy, load_model, tokens_read
    from modeling_pfberxit.export.files import export_file
    from modeling_pfberxit.export.hub import export_hub
    from modeling_pfberxit.export.made import Promise
    from modeling_pfberxit.export.texts import read_texts, remember_texts
    from modeling_pfberxit.model.validation import refuse

    if hub is not None and single:
        refuse("single", single, "left out with --hub, where files are for any number of texts")
    if texts is None and (columns or split or config):
        refuse("texts", texts, "given together with --text, --pair, --split or --config, which are about it")
    if confidence is not None and differ is None:
        refuse("confidence", confidence, "given together with --differ")
    if differ is not None and texts is None:
        refuse("differ", differ, "given together with --int8 and --texts, on which it is certified")
    loaded, tokenizer = load_model(model, "cpu")
    read = tokens_read(loaded, tokenizer, max_length)
    given = None
    if texts is not None:
        asked = (read, texts, config, split, columns)
        given = read_texts(model, loaded, tokenizer, *asked, unused=differ is not None)
        for reason, number in given.left_out.items():
            print(f"{number:,} texts are left out: {reason}", flush=True)
    promise = None if differ is None else Promise(differ, 0.95 if confidence is None else confidence)
    options: dict[str, Any] = {
        "policy": asked_policy(policy), "max_length": max_length, "int8": int8, "promise": promise,
        "runner": Path(__file__).with_name("onnx.py"), "rows": given.rows if given else (),
    }  # fmt: skip
    if hub is not None:
        made = export_hub(loaded, tokenizer, hub, **options)
    else:
        made = export_file(loaded, tokenizer, onnx or "", single=single, **options)
    say(made)
    if given is not None and made.certificate is not None:
        remember_texts(model, given)
        if not made.certificate.passed:
            raise SystemExit(NONE_PASSED)


def say(made: Any) -> None:
    """What was written, and how it compares."""
    from modeling_pfberxit.export.int8 import in_words, promise_in_words
    from modeling_pfberxit.model.exit_policy import describe

    found = made.compared
    print(f"Wrote {made.path}, {made.path.stat().st_size / 2**20:,.1f} MB: {describe(made.policy)}")
    print(
        f"Held against the model on {found.rows:,} answers: {found.layers_apart} left after another layer, "
        f"{found.answers_apart} were others, {found.near} lay within rounding of a threshold; logits up to "
        f"{found.farthest:.1g} apart."
    )
    if made.int8 is not None:
        print(f"{in_words(made.int8)} {promise_in_words(made.certificate)}")
