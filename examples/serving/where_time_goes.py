"""Where the CPU time of a served request goes: model, tokens, HTTP, JSON, counting; beside the stock classifier's.

    python examples/serving/where_time_goes.py faster my-classifier texts.csv --text text --policies certified-1%

`faster` is a folder that `pfberxit retrofit my-classifier` made, with certified points. Servers run in turn on one
core, each is sent the same requests at the same moments from the other, and counts the CPU time of its threads around
the functions that `servers.count_parts` names. `rest` is what is left of a thread: event loop, routing, locks, waking.
"""

import json
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from servers import OURS, RIVALS, STOCK, Server

PORT = 8580
RESTS = {"MainThread": "event loop, routing, sockets", "engine": "engine: waiting and waking"}


def arguments() -> Namespace:
    from pfberxit.options import add_text_columns

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a retrofitted model with certified points")
    parser.add_argument("stock", help="the stock classifier that it was made from")
    parser.add_argument("dataset", metavar="DATA", help="texts that are asked, as `pfberxit predict` takes them")
    parser.add_argument("--config")
    parser.add_argument("--split")
    add_text_columns(parser, label=False)
    parser.add_argument(
        "--policies", nargs="+", default=["certified-1%"], help="points of ours (default: certified-1%%)"
    )
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--cores", nargs=2, type=int, default=[0, 1], help="of servers, and of the load (default: 0 1)")
    parser.add_argument("--output", help="a file for the numbers, JSON")
    return parser.parse_args()


def cases(options: Namespace, folder: Path) -> dict[str, tuple]:
    """The servers by name: kind, model, further options."""
    from modeling_pfberxit.evaluation.saved_model import load_model
    from modeling_pfberxit.export.files import export_file

    model, tokenizer = load_model(options.model, "cpu")
    found: dict[str, tuple] = {name: (kind, options.stock) for name, kind in RIVALS.items()}
    for policy in options.policies:
        file = folder / policy / "model.onnx"
        file.parent.mkdir()
        export_file(model, tokenizer, str(file), policy)
        found[f"ours, {policy}"] = OURS, options.model, "--policy", policy
        found[f"ours, ONNX, {policy}"] = OURS, str(file), "--policy", policy
    return found


def parts_of(server: Server, texts: list, options: Namespace) -> dict[str, float]:
    """Milliseconds a request, by part."""
    from modeling_pfberxit.serving.forecast import drawn
    from modeling_pfberxit.serving.load import send
    from modeling_pfberxit.serving.traces import steady

    seconds = options.requests / options.rate
    arrivals = steady(seconds).arrivals(options.rate)
    rows = drawn(len(texts), len(arrivals))
    send(server.url, texts, rows[:50], arrivals[:50], seconds)  # caches are warm
    before, _ = server.parts(), send(server.url, texts, rows, arrivals, seconds)
    found = {name: 1000 * each / len(arrivals) for name, each in (server.parts() - before).items()}
    told = {name: found.pop(f"thread {thread}") - found.pop(f"parts of {thread}") for thread, name in RESTS.items()}
    ours = {
        name: each for name, each in found.items() if not name.startswith(("thread ", "parts of ")) and name != "all"
    }
    ours |= told
    return {**ours, "other threads": found["all"] - sum(ours.values()), "all": found["all"]}


def main() -> None:
    options = arguments()
    import torch

    from modeling_pfberxit.data.texts import load_texts
    from modeling_pfberxit.evaluation.tables import table
    from modeling_pfberxit.serving.forecast import asked_of
    from modeling_pfberxit.serving.load import pin

    pin(options.cores[1])
    torch.set_num_threads(1)
    rows = load_texts(options.dataset, options.config, **options.columns, split=options.split)
    texts, found = asked_of(rows.rows, rows.names), dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (kind, model, *more)) in enumerate(cases(options, Path(folder)).items()):
            server = Server(kind, model, PORT + number, options.cores[0], *more, parts=True)
            try:
                server.wait()
                found[name] = parts_of(server, texts, options)
            finally:
                server.stop()
            print(name, {part: round(ms, 2) for part, ms in found[name].items()}, flush=True)
    order = [part for each in found.values() for part in each if part != "all"]
    cells = [
        [part, *(f"{each.get(part, 0.0):.2f}" for each in found.values())] for part in dict.fromkeys([*order, "all"])
    ]
    cells.append(["of stock", *(f"{each['all'] / found[STOCK]['all']:.2f}" for each in found.values())])
    print("\n" + table(["ms of CPU a request", *found], cells))
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
