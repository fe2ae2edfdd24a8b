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


def add_data(parser: ArgumentParser, default: str = "support_desk") -> None:
    """The data set, and its columns where their meaning is not certain."""
    column: dict[str, Any] = {"dest": "columns", "default": {}, "action": ColumnOption}
    parser.add_argument(
        "--dataset",
        default=default,
        help="Hub id, folder or one file (csv, tsv, json, jsonl, parquet; default: %(default)s); without a split to "
        "evaluate on, a fifth of the rows, drawn with seed 0, is held out as validation",
    )
    parser.add_argument("--text", **column, metavar="COLUMN", help="of texts, where it is not certain")
    parser.add_argument("--pair", **column, metavar="COLUMN", help="of second texts")
    parser.add_argument("--label", **column, metavar="COLUMN", nargs="+", help="of labels; or one of 0 and 1 for each")
    parser.add_argument("--problem-type", **column, metavar="TYPE", help="where numbers may be classes or values")
    parser.add_argument(
        "--label-form", **column, metavar="FORM", help="where lists may be ids or 0 and 1 for each label"
    )


def add_model_and_data(parser: ArgumentParser) -> None:
    """A saved model, and the rows it is to judge."""
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    add_data(parser)
    parser.add_argument("--config", help="its configuration, e.g. a GLUE task")
    parser.add_argument(
        "--split", help="of rows the model was not trained on (default: the task's evaluation split); all: every row"
    )
    parser.add_argument("--rows", type=int, default=0, help="rows at most; 0: all")


def add_budget(parser: ArgumentParser, seeds: list[int], rows: int, epochs: float) -> None:
    """Seeds, rows and epochs of every training of a study."""
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds)
    parser.add_argument("--rows", type=int, default=rows, help="training rows at most (0: all)")
    parser.add_argument("--held-out", type=int, default=500, help="training rows kept back to choose thresholds on")
    parser.add_argument("--epochs", type=float, default=epochs)
    parser.add_argument("--max-length", type=int, default=128, help="tokens a text is cut to")


def tasks_of(dataset: str, tasks: list[str] | None, *usual: str) -> list[str]:
    """The configurations asked for, or the usual ones; of a file the only one."""
    return tasks or (["default"] if os.path.isfile(dataset) else list(usual))
