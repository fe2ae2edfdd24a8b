"""`pfberxit serve`: a model behind HTTP, as clients of text-embeddings-inference and of the Hub call it."""

from argparse import ArgumentParser
from importlib import import_module
from typing import Any

from .options import add_execution, add_model, add_policy

HELP = "answer over HTTP: the routes of text-embeddings-inference and of the Hub's inference format"

# what [serve] brings
OF_THE_EXTRA = ("aiohttp", "fastapi", "uvicorn", "httptools", "prometheus_client", "starlette", "pydantic")


def add_arguments(parser: ArgumentParser) -> None:
    """A model, where it listens, which rule it follows, and the limits of requests and batches."""
    add_model(parser, "folder or Hub id of a fine-tuned model, or a file.onnx of `pfberxit export`")
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="(default: %(default)s)")
    add_policy(parser, "when rows exit whose request does not say: an operating point's name, or JSON")
    parser.add_argument(
        "--differ", type=float, metavar="SHARE", help="instead: move along the certified points by how long requests "
        "wait, as far as this share of the answers may differ from full depth's",
    )  # fmt: skip
    parser.add_argument(
        "--step-ms", type=float, metavar="X", help="with --differ: the wait from which the next point answers"
    )
    parser.add_argument(
        "--watch", type=float, metavar="SHARE",
        help="of the answers, held against full depth's (default: 0.01 where points are certified)",
    )  # fmt: skip
    parser.add_argument(
        "--model", dest="adapters", action="append", default=[], metavar="NAME=FOLDER",
        help="a further adapter on the same encoder, at /models/NAME; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--models-from", metavar="FOLDER", help="adapters in it may be loaded while serving: PUT /models/NAME"
    )
    add_execution(parser)
    parser.add_argument("--threads", type=int, help="of one batch's work (default: as torch or onnxruntime chooses)")
    parser.add_argument("--token-file", metavar="FILE", help="with a token that requests must bear (default: none)")
    parser.add_argument("--trace", action="store_true", help="send OpenTelemetry traces, as OTEL_... variables say")
    add_limits(parser)


def add_limits(parser: ArgumentParser) -> None:
    """What batches, the queue and a request may hold."""
    for option, kind, default, what in (
        ("--batch-tokens", int, 512, "tokens of a batch, padding included"),
        ("--batch-rows", int, 16, "texts of a batch"),
        ("--wait-ms", float, 0.0, "how long an idle server waits for a batch to fill"),
        ("--queue", int, 1024, "texts that may wait; more are refused with 429"),
        ("--body-bytes", int, 2_000_000, "of a request"),
        ("--texts", int, 64, "of a request"),
        ("--characters", int, 100_000, "of a text"),
        ("--upload", float, 10.0, "seconds in which a request must have been sent"),
        ("--deadline", float, 30.0, "seconds in which a request is answered, or given up with 504"),
        ("--connections", int, 1024, "that may be open"),
        ("--drain", int, 30, "seconds in which open requests are answered after SIGTERM"),
    ):
        metavar = "N" if kind is int else "X"
        parser.add_argument(option, type=kind, default=default, metavar=metavar, help=f"{what} (default: %(default)s)")


def run(
    model: str, host: str, port: int, policy: str | None, differ: float | None, step_ms: float | None,
    watch: float | None, adapters: list[str], models_from: str | None,
    max_length: int | None, device: str | None, dtype: str | None, threads: int | None, token_file: str | None,
    trace: bool, batch_tokens: int, batch_rows: int, wait_ms: float, queue: int, body_bytes: int, texts: int,
    characters: int, upload: float, deadline: float, connections: int, drain: int,
) -> None:  # fmt: skip
    """Check everything, load the models, say what is served, and serve until SIGTERM."""
    start = needing_serve("serving.start")
    from modeling_pfberxit.evaluation.saved_model import asked_policy
    from modeling_pfberxit.serving.batching import Limits
    from modeling_pfberxit.serving.limits import HttpLimits
    from modeling_pfberxit.serving.meter import PrometheusMeter

    place = start.Place(host, port, drain, trace)
    limits = Limits(batch_tokens, batch_rows, wait_ms / 1000, queue=queue)
    http = HttpLimits(body_bytes, texts, characters, upload, deadline, connections, token_in(token_file))
    more, rule = named(adapters), start.Rule(asked_policy(policy), differ, step_ms and step_ms / 1000, watch)
    loading = start.Loading(max_length, device, dtype)
    root, meter = folder_of(models_from), PrometheusMeter()
    first = opened(model, loading, threads)
    service = start.make_service(first, rule, loading, more, root, limits, http, meter)
    for served in service.models:
        print(said_of(served), flush=True)
    start.server_of(service, place).run()


def said_of(served: Any) -> str:
    """What is served under a name, and by which points it answers."""
    words = f"{served.name}: {len(served.predictor.labels)} labels, {served.predictor.depth} layers; "
    words += (
        f"moves between {', '.join(served.controller.between)}" if served.moves else f"leaves by {served.rule.name}"
    )
    return words + "".join(f"\n  {name} is no rung: {reason}" for name, reason in served.left_out.items())


def needing_serve(module: str) -> Any:
    """A module of the library that needs the extra `serve`, by its name."""
    try:
        return import_module(f"modeling_pfberxit.{module}")
    except ImportError as error:
        if (error.name or "").split(".")[0] not in OF_THE_EXTRA:
            raise
        raise SystemExit(f"pfberxit: {error.name} is missing: pip install 'modeling-pfberxit[serve]'") from error


def opened(model: str, loading: Any, threads: int | None) -> Any:
    """The first model: a saved one, or an exported file."""
    from modeling_pfberxit.model.validation import optional, whole
    from modeling_pfberxit.serving.start import open_file

    threads = optional(whole(1))("threads", threads)
    if model.endswith(".onnx"):
        from .onnx import Classifier

        return open_file(Classifier(model, threads), loading)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return loading.first(model)


def named(adapters: list[str]) -> dict[str, str]:
    """`NAME=FOLDER` of every adapter, by name."""
    from modeling_pfberxit.model.validation import refuse

    found: dict[str, str] = {}
    for each in adapters:
        name, equals, folder = each.partition("=")
        if not (name and equals and folder) or name in found:
            refuse("model", each, "NAME=FOLDER, every name once")
        found[name] = folder
    return found


def folder_of(path: str | None) -> str | None:
    """A folder that is there."""
    import os

    from modeling_pfberxit.model.validation import refuse

    return path if path is None or os.path.isdir(path) else refuse("models-from", path, "a folder that is there")


def token_in(path: str | None) -> str | None:
    """The token in a file, without the line's end."""
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return file.read().strip()
