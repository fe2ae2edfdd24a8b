"""Arguments that several commands share: the data set and its columns, a saved model, a budget."""

import os
from argparse import Action, ArgumentParser, Namespace
from typing import Any


class ColumnOption(Action):
    """Collects the options about the data's columns in one dictionary, `columns`."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Add the option under its name."""
        namespace.columns = {**namespace.columns, self.option_strings[0][2:].replace("-", "_"): values}


NONE_PASSED = 3  # exit code of commands that certify
FORMS = "a file (csv, tsv, json, jsonl, parquet, txt), a folder, a glob, - for stdin, or a Hub id"


def add_data(parser: ArgumentParser, default: str = "support_desk", labels: bool = True) -> None:
    """The data set, and its columns where their meaning is not certain."""
    parser.add_argument(
        "--dataset",
        default=default,
        help=f"{FORMS} (default: %(default)s); without a split to evaluate on, a fifth of the rows, drawn with seed 0, "
        "is held out as validation",
    )
    (add_columns if labels else add_text_columns)(parser)


def add_columns(parser: ArgumentParser) -> None:
    """The columns of texts and labels, and how labels are written, collected as `columns`."""
    column: dict[str, Any] = {"dest": "columns", "default": {}, "action": ColumnOption}
    add_text_columns(parser)
    parser.add_argument("--problem-type", **column, metavar="TYPE", help="where numbers may be classes or values")
    parser.add_argument(
        "--label-form", **column, metavar="FORM",
        help="of several labels, where it is not certain: lists (of ids), vectors (of 0 and 1), or a separator",
    )  # fmt: skip


def add_text_columns(parser: ArgumentParser, label: bool = True) -> None:
    """The columns of texts and labels alone, collected as `columns`: what `load_texts` takes."""
    column: dict[str, Any] = {"dest": "columns", "default": {}, "action": ColumnOption}
    parser.add_argument("--text", **column, metavar="COLUMN", help="of texts, where it is not certain")
    parser.add_argument("--pair", **column, metavar="COLUMN", help="of second texts")
    if label:
        parser.add_argument(
            "--label", **column, metavar="COLUMN", nargs="+", help="of labels; or one of 0 and 1 for each"
        )


def add_model_and_data(parser: ArgumentParser) -> None:
    """A saved model, and the rows it is to judge."""
    add_model(parser)
    add_data(parser)
    add_config(parser)
    add_split(parser)
    parser.add_argument("--rows", type=int, default=0, help="rows at most; 0: all")


# ---- one option each, for `MODEL DATA --text COLUMN ...` -------------------------------------------------------------


def add_model(parser: ArgumentParser, what: str = "folder or Hub id of a fine-tuned model") -> None:
    """`MODEL`."""
    parser.add_argument("model", help=what)


def add_source(parser: ArgumentParser, **options: Any) -> None:
    """`DATA` and, for the Hub, its configuration: `dataset` and `config`."""
    parser.add_argument("dataset", metavar="DATA", help=FORMS, **options)
    add_config(parser)


def add_config(parser: ArgumentParser) -> None:
    """`--config`."""
    parser.add_argument("--config", help="of a data set on the Hub: its configuration, e.g. a GLUE task")


def add_split(parser: ArgumentParser, help: str | None = None) -> None:  # noqa: A002  argparse's own name
    """`--split`."""
    usual = "of rows the model was not trained on (default: the task's evaluation split); all: every row"
    parser.add_argument("--split", help=help or usual)


def add_policy(parser: ArgumentParser, help: str = "when rows exit: an operating point's name, or JSON") -> None:  # noqa: A002
    """`--policy`, read by `evaluation.saved_model.asked_policy`."""
    parser.add_argument("--policy", metavar="NAME_OR_JSON", help=f"{help} (default: the model's own rule)")


def add_texts(parser: ArgumentParser) -> None:
    """`DATA`, its columns and split, where texts are read without asking for labels."""
    add_source(parser)
    add_text_columns(parser)
    add_split(parser, "which rows; needed where the data set has several splits; all: every row")


def add_promise(parser: ArgumentParser) -> None:
    """`--differ`, `--confidence`, `--tolerance`: what a certificate says."""
    parser.add_argument(
        "--differ", type=float, nargs="+", default=[0.01], metavar="SHARE",
        help="of the answers, at most; several are stored side by side and share the confidence (default: 0.01)",
    )  # fmt: skip
    parser.add_argument("--confidence", type=float, default=0.95, help="of all that is promised (default: %(default)s)")
    parser.add_argument(
        "--tolerance", type=float, help="how far values may lie apart and still be the same; regression"
    )


def add_execution(parser: ArgumentParser) -> None:
    """`--max-length`, `--device`, `--dtype`, read by `evaluation.saved_model.load_model`."""
    parser.add_argument(
        "--max-length", type=int, help="tokens of a text that are read (default: as the tokenizer was saved)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="of the weights (default: as saved)"
    )


def add_budget(parser: ArgumentParser, seeds: list[int], rows: int, epochs: float) -> None:
    """Seeds, rows and epochs of every training of a study."""
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    parser.add_argument("--rows", type=int, default=rows, help="training rows at most (0: all)")
    parser.add_argument("--held-out", type=int, default=500, help="training rows kept back to choose thresholds on")
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--max-length", type=int, default=128, help="tokens a text is cut to")


def tasks_of(dataset: str, tasks: list[str] | None, *usual: str) -> list[str]:
    """The configurations asked for, or the usual ones; of files, and of a folder without a README, the only one."""
    is_files = os.path.isfile(dataset) or dataset == "-" or any(mark in dataset for mark in "*?[")
    is_files = is_files or os.path.isdir(dataset) and not os.path.exists(os.path.join(dataset, "README.md"))
    return tasks or (["default"] if is_files else list(usual))
