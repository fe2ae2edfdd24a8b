"""`pfberxit benchmark`: speed against the stock `transformers` model, in one run."""

from argparse import ArgumentParser
from functools import partial
from typing import Any

HELP = "speed against the stock transformers model, in one run"


def add_arguments(parser: ArgumentParser) -> None:
    """Models, inputs and cases to time; four options measure something else instead."""
    parser.add_argument(
        "--preset", default="albert-base-v2-mlp", help="a file of configuration/, without .json; minilm; tiny"
    )
    parser.add_argument("--layers", type=int, help="run only so many of its layers; default: all")
    parser.add_argument(
        "--paper", action="store_true", help="the preset's exits (backbone pooler, LTE), not the defaults"
    )
    parser.add_argument("--pooling", default="cls", help="what exits read: cls or mean")
    parser.add_argument("--sublearner", default="mlp", help="of the adapters; an unknown name lists them")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--lengths", nargs="*", type=int, default=[16, 64, 128])
    parser.add_argument("--saved", nargs="*", type=float, default=[0.25, 0.5, 0.75], help="shares of layers to save")
    parser.add_argument(
        "--recordings", nargs="*", default=[], metavar="FILE",
        help="of `pfberxit frontier`: their rows' lengths and evidence are run",
    )  # fmt: skip
    parser.add_argument("--mix-rows", type=int, default=192, help="how many of them are run at their own lengths")
    parser.add_argument("--no-rivals", action="store_false", dest="rivals", help="without ONNX Runtime")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well: the stock model's and ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--output", help="a folder for numbers, table and picture")
    parser.add_argument("--replay", action="store_true", help="time replay and the commands on recordings instead")
    parser.add_argument("--rows", type=int, default=10_000, help="of those recordings")
    parser.add_argument("--exits", type=int, default=12, help="of those recordings")
    parser.add_argument("--training", action="store_true", help="time training steps instead: 32 x 64 tokens")
    parser.add_argument(
        "--exported", action="store_true", help="time what `pfberxit export` writes instead, beside ONNX Runtime"
    )
    parser.add_argument("--profile", action="store_true", help="say what our time is spent on instead")


MODEL = ("preset", "layers", "repeats", "sublearner", "device")
TIMED = (*MODEL, "paper", "pooling", "batch_sizes", "lengths", "saved", "recordings", "mix_rows", "dtype", "output")
READ = {
    "replay": ("rows", "exits"),
    "training": MODEL,
    "exported": TIMED,
    "profile": TIMED,
    "": (*TIMED, "rivals", "compiled"),
}  # by what is measured, the options that it reads


def check_read(mode: str, options: dict[str, Any]) -> None:
    """Refuse options that are not at their defaults and that what is measured would pass over."""
    from modeling_pfberxit.model.validation import refuse

    parser = ArgumentParser()
    add_arguments(parser)
    usual = vars(parser.parse_args([]))
    unread = [name for name in options if name not in (*READ[mode], mode)]
    unread += [name for name in ("pooling", "sublearner") if options["paper"]]
    unread += [] if options["recordings"] else ["mix_rows"]
    for name in unread:
        if options[name] != usual[name]:
            refuse(name, options[name], f"left out: nothing reads it {'with --' + mode if mode else 'here'}")


def run(**options: Any) -> None:
    """Print the benchmark, or what one of the four options measures."""
    say, chosen = partial(print, flush=True), [name for name in READ if name and options[name]]
    mode = chosen[0] if chosen else ""
    check_read(mode, options)
    read = {name: options[name] for name in READ[mode]}
    if mode == "replay":
        from modeling_pfberxit.benchmark.commands import benchmark_commands
        from modeling_pfberxit.benchmark.replay import benchmark_replay

        benchmark_replay(**read, say=say)
        benchmark_commands(**read, say=say)
    elif mode == "training":
        from modeling_pfberxit.benchmark.training_step import benchmark_training

        benchmark_training(**read, say=say)
    elif mode == "exported":
        from modeling_pfberxit.benchmark.exported import run_exported

        run_exported(**read, say=say)
    elif mode == "profile":
        from modeling_pfberxit.benchmark.profiling import run_profile

        run_profile(**read, say=say)
    else:
        from modeling_pfberxit.benchmark.speed import run_benchmark

        run_benchmark(**read, say=say)
