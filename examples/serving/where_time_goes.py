"""Where the CPU time of a served request goes: model, tokens, HTTP, JSON, counting; beside the stock classifier's.

    python examples/serving/where_time_goes.py faster my-classifier texts.csv --text text --policies certified-1%

`faster` is a folder that `pfberxit retrofit my-classifier` made, with certified points. Servers run in turn on one
core, each is sent the same requests at the same moments from the other, and counts the CPU time of its threads around
the functions that `servers.count_parts` names. What is left of a thread is event loop, routing, locks, waking. Points
that the exported file cannot hold are left out there.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from servers import OURS, RIVALS, STOCK, Server, add_inputs, exported, texts_of

PORT = 8580
RESTS = {"MainThread": "event loop, routing, sockets", "engine": "engine: waiting and waking"}


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_inputs(parser)
    parser.add_argument(
        "--policies", nargs="+", default=["certified-1%"], help="points of ours (default: certified-1%%)"
    )
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--output", help="a file for the numbers, JSON")
    return parser.parse_args()


def cases(options: Namespace, file: str) -> dict[str, tuple]:
    """The servers by name: kind, model, further options."""
    from pfberxit.onnx import Classifier

    points = Classifier(file).metadata["operating_points"]
    found: dict[str, tuple] = {name: (kind, options.stock) for name, kind in RIVALS.items()}
    for policy in options.policies:
        found[f"ours, {policy}"] = OURS, options.model, "--policy", policy
        if policy in points:
            found[f"ours, ONNX, {policy}"] = OURS, file, "--policy", policy
    return found


def parts_of(server: Server, texts: list, options: Namespace) -> dict[str, float]:
    """Milliseconds a request, by part."""
    from modeling_pfberxit.traffic.load import send
    from modeling_pfberxit.traffic.traces import drawn, steady

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
    from modeling_pfberxit.evaluation.tables import table
    from modeling_pfberxit.traffic.load import pin

    pin(options.cores[1])
    (texts, _), found = texts_of(options), dict[str, dict[str, float]]()
    file = exported(options.model, options.files)
    for number, (name, (kind, model, *more)) in enumerate(cases(options, file).items()):
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
