"""A served model under load on loopback, beside its stock classifier behind the same server, each side on a core.

    python examples/serving/under_load.py faster my-classifier nyu-mll/glue --config sst2 --split validation

`faster` is a folder that `pfberxit retrofit my-classifier` made, with certified points. Servers: the stock classifier
in `transformers` and in ONNX Runtime, ours at its most careful certified point in PyTorch and in its ONNX file, and
both with the controller (`pfberxit serve --differ`). Parts, each for every server in turn:

1. the highest steady rate at which p99 stays under 200 ms (the stock classifier's is its capacity);
2. quiet: a quarter of that capacity;  3. steady: 60 % of it, repeated, the median is told;
4. bursts: three times the quiet rate for 30 s, and three times the 60 % (`heavy`), with and without the controller.

The same traffic is simulated for ours in PyTorch. Numbers go to under_load.json and .md, latencies in bursts to .png.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

FIRST_PORT = 8560
OURS, FILE, STEERED, FILE_STEERED = "ours", "ours, ONNX", "ours, controller", "ours, ONNX, controller"
RIVALS = {"stock transformers": "torch", "ONNX Runtime, full depth": "onnxruntime"}
PLAIN = [*RIVALS, OURS, FILE]
FIXED_AND_STEERED = {OURS: STEERED, FILE: FILE_STEERED}


def arguments() -> Namespace:
    from pfberxit.options import add_text_columns

    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a retrofitted model with certified points")
    parser.add_argument("stock", help="the stock classifier that it was made from")
    parser.add_argument("dataset", metavar="DATA", help="texts that are asked, as `pfberxit predict` takes them")
    parser.add_argument("--config")
    parser.add_argument("--split")
    add_text_columns(parser, label=False)
    parser.add_argument("--policy", help="the point of ours without a controller (default: the most careful certified)")
    parser.add_argument("--differ", type=float, default=0.05, help="the controller's floor (default: %(default)s)")
    parser.add_argument("--cores", nargs=2, type=int, default=[0, 1], help="of servers, and of the load (default: 0 1)")
    parser.add_argument("--probes", type=int, default=4, help="rates tried for the capacity (default: %(default)s)")
    parser.add_argument("--probe", type=float, default=5.0, help="seconds of each (default: %(default)s)")
    parser.add_argument("--quiet", type=float, default=12.0, help="seconds (default: %(default)s)")
    parser.add_argument("--steady", type=float, default=30.0, help="seconds (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="of the steady part (default: %(default)s)")
    parser.add_argument(
        "--burst", type=float, default=30.0, help="seconds, 5 s before and behind (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=12.0, help="refuse to run longer, about (default: %(default)s)"
    )
    parser.add_argument("--output", default="under_load", help="folder (default: %(default)s)")
    return parser.parse_args()


# ---- servers ---------------------------------------------------------------------------------------------------------


def serve(kind: str, model: str, port: str, core: str, *options: str) -> None:
    """In a process of its own: one server on one core."""
    from modeling_pfberxit.serving.load import pin

    pin(int(core))
    import torch

    torch.set_num_threads(1)
    if kind in RIVALS.values():
        from modeling_pfberxit.serving.rivals import FullDepth
        from modeling_pfberxit.serving.start import Loading, Place, Rule, make_service, server_of

        service = make_service(FullDepth(model, kind), Rule(), Loading(), {})
        return server_of(service, Place(port=int(port))).run()
    from pfberxit.cli import main

    return main(["serve", model, "--port", port, "--threads", "1", *options])


class Server:
    """A server in a process of its own, and what it has cost."""

    def __init__(self, kind: str, model: str, port: int, core: int, *options: str) -> None:
        import psutil

        command = [sys.executable, __file__, "serve", kind, model, str(port), str(core), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        self.url, self.usage = f"http://127.0.0.1:{port}", psutil.Process(self.process.pid)

    def wait(self, seconds: float = 180.0) -> None:
        """Until it is warm."""
        end = time.monotonic() + seconds
        while True:
            try:
                with urlopen(f"{self.url}/health", timeout=2):
                    return
            except (URLError, OSError):
                if self.process.poll() is not None or time.monotonic() > end:
                    self.log.seek(0)
                    self.process.kill()
                    raise RuntimeError(f"it did not start\n{self.log.read().decode()[-500:]}") from None
                time.sleep(0.2)

    @property
    def cpu(self) -> float:
        """Seconds it has computed."""
        times = self.usage.cpu_times()
        return times.user + times.system

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(40)


def servers(options: Namespace, policy: str, file: str) -> dict[str, Server]:
    """All of them, on one core; those that are not asked do nothing."""
    core, floor = options.cores[0], ["--differ", str(options.differ)]
    cases = {name: (kind, options.stock, []) for name, kind in RIVALS.items()}
    cases |= {OURS: ("ours", options.model, ["--policy", policy]), FILE: ("ours", file, ["--policy", policy])}
    cases |= {STEERED: ("ours", options.model, floor), FILE_STEERED: ("ours", file, floor)}
    found = {}
    for number, (name, (kind, model, more)) in enumerate(cases.items()):
        server = Server(kind, model, FIRST_PORT + number, core, *more)
        try:
            server.wait()
        except RuntimeError as error:
            print(f"{name} is left out: {error}", flush=True)
        else:
            found[name] = server
            print(f"{name}: warm", flush=True)
    return found


# ---- load ------------------------------------------------------------------------------------------------------------


class Load:
    """Sends traces to servers, and keeps what came of each."""

    def __init__(self, found: dict[str, Server], texts: list, answers: list[str]) -> None:
        self.servers, self.texts, self.answers, self.runs, self.latest = found, texts, answers, {}, 0.0

    def send(self, name: str, trace, rate: float, seed: int = 0, requests: int | None = None):
        """A trace at a usual rate, to one server; of `requests` at once where a number is given."""
        import numpy as np

        from modeling_pfberxit.serving.forecast import drawn
        from modeling_pfberxit.serving.load import send

        server = self.servers[name]
        arrivals = np.zeros(requests) if requests else trace.arrivals(rate, seed=seed)
        before = server.cpu
        sent = send(
            server.url, self.texts, drawn(len(self.texts), len(arrivals), seed), arrivals, trace.seconds, self.answers
        )
        sent.run.busy = server.cpu - before
        self.latest = max(self.latest, sent.late)
        return sent.run

    def carries(self, name: str, options: Namespace) -> float:
        """The highest of some steady rates, halved until one is, at which p99 is under 200 ms; 0: none was."""
        import numpy as np

        from modeling_pfberxit.serving.traces import steady
        from modeling_pfberxit.serving.traffic import Outcome

        crowd = self.send(name, steady(1.0), 0.0, requests=160)
        rate = 0.75 * 160 / np.nanmax(crowd.latency)
        low, high = 0.0, 1.5 * rate
        for number in range(options.probes):
            found = Outcome.of(self.send(name, steady(options.probe), rate, seed=number))
            low, high = (rate, high) if found.p99 <= 200 and not found.refused else (low, rate)
            rate = (low + high) / 2
        return float(low)


def middle(outcomes: list):
    """The median of every number of repeated runs."""
    kind = type(outcomes[0])
    return kind(**{each.name: median(getattr(one, each.name) for one in outcomes) for each in fields(kind)})


def capacities(load: Load, options: Namespace) -> dict[str, float]:
    """What every server without a controller carries, the stock classifier first."""
    carried = {}
    for name in (name for name in PLAIN if name in load.servers):
        carried[name] = load.carries(name, options)
        print(f"{name} carries {carried[name]:.1f} requests/s", flush=True)
        if not any(carried.values()):
            raise SystemExit(
                f"{name} was in time at none of the rates tried: more --probes, or fewer others on its core"
            )
    return carried


def measured(load: Load, simulated, options: Namespace, capacity: float, found: dict) -> None:
    """All other parts, in turn, into `found`: (part, server) -> outcome."""
    from modeling_pfberxit.serving.traces import Trace, burst, steady
    from modeling_pfberxit.serving.traffic import Outcome

    def take(part: str, name: str, trace: Trace, rate: float, repeats: int = 1) -> None:
        runs = [load.send(name, trace, rate, seed) for seed in range(repeats)]
        expected = [simulated(name, trace, rate, seed) for seed in range(repeats)] if name in (OURS, STEERED) else []
        if part in ("burst", "heavy"):  # the outcome of the burst itself
            load.runs[part, name] = runs[0], *expected
            runs, expected = ([run.between(5, 5 + options.burst) for run in each] for each in (runs, expected))
        found[part, name] = middle([Outcome.of(run) for run in runs])
        if expected:
            found[part, f"{name}, simulated"] = middle([Outcome.of(run) for run in expected])
        print(f"{part}, {name}: p50 {found[part, name].p50:.0f} ms, p99 {found[part, name].p99:.0f} ms", flush=True)

    plain = [name for name in PLAIN if name in load.servers]
    for name in load.servers:
        take("quiet", name, steady(options.quiet), 0.25 * capacity)
    for name in plain:
        take("steady", name, steady(options.steady), 0.6 * capacity, options.repeats)
    trace = burst(options.burst + 10, options.burst)
    for name in (each for pair in FIXED_AND_STEERED.items() for each in pair):
        if name in load.servers:
            take("burst", name, trace, 0.25 * capacity)
    for name in (OURS, STEERED):
        take("heavy", name, trace, 0.6 * capacity)


# ---- results ---------------------------------------------------------------------------------------------------------


def save(folder: Path, carried: dict, found: dict, load: Load, about: dict) -> str:
    """Write json, md and png; the tables."""
    from modeling_pfberxit.evaluation.plots import COLOURS, finish_panels, panels_of
    from modeling_pfberxit.evaluation.tables import table
    from modeling_pfberxit.serving.traffic import as_markdown

    folder.mkdir(parents=True, exist_ok=True)
    parts = [[*key, {k: None if v != v else v for k, v in asdict(each).items()}] for key, each in found.items()]
    numbers = {"about": about, "carries": carried, "parts": parts}
    (folder / "under_load.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    rates = table(["server", "requests/s at p99 < 200 ms"], [[name, f"{rate:.1f}"] for name, rate in carried.items()])
    text = f"{rates}\n\n{as_markdown(found, ['part', 'server'])}\n"
    (folder / "under_load.md").write_text(text, encoding="utf-8")
    figure, panels = panels_of([f"{part}: {name}" for part, name in load.runs], (10, 6), 3, sharey=True)
    for axes, runs in zip(panels, load.runs.values()):
        for run, colour in zip(runs, COLOURS):
            axes.plot(run.arrivals, 1000 * run.latency, ".", ms=2, color=colour)
        axes.set_yscale("log")
    finish_panels(figure, "seconds", "ms (blue: measured, orange: simulated)", folder / "under_load.png", "bursts")
    return text


def planned(options: Namespace) -> float:
    """About how many minutes it all takes."""
    load = len(PLAIN) * (options.probes * options.probe + 3) + 6 * options.quiet
    load += len(PLAIN) * options.repeats * options.steady + 6 * (options.burst + 10)
    return (load + 60) / 60


def main() -> None:
    options = arguments()
    if planned(options) > options.minutes:
        raise SystemExit(f"This would take about {planned(options):.1f} minutes; --minutes allows {options.minutes:g}.")
    import numpy as np
    import torch

    from modeling_pfberxit.data.texts import load_texts
    from modeling_pfberxit.export.files import export_file
    from modeling_pfberxit.serving.controller import Controller, Fixed
    from modeling_pfberxit.serving.forecast import Known, asked_of
    from modeling_pfberxit.serving.load import pin, request_seconds
    from modeling_pfberxit.serving.simulator import Simulator

    pin(options.cores[1])
    torch.set_num_threads(1)
    texts = load_texts(options.dataset, options.config, **options.columns, split=options.split)
    known = Known(options.model)
    forecast, times = known.forecast(texts.rows, texts.names), known.times(asked_of(texts.rows, texts.names), 5)
    ladder, answers = forecast.ladder, forecast.compared()
    policy = options.policy or ladder[min(1, len(ladder) - 1)].name
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_file(known.model, known.tokenizer, str(file), policy)
        running = servers(options, policy, str(file))
        try:
            load = Load(running, asked_of(texts.rows, texts.names), answers)
            beside = request_seconds(running[OURS].url, load.texts)

            def simulated(name: str, trace, rate: float, seed: int):
                steer = Fixed(ladder, policy) if name == OURS else Controller(ladder, options.differ)
                simulator = Simulator(forecast.texts, times, request=beside, seed=seed)
                return simulator.run(trace.arrivals(rate, seed=seed), trace.seconds, [steer])

            found: dict = {}
            carried = capacities(load, options)
            measured(load, simulated, options, next(iter(carried.values())), found)
        finally:
            for server in running.values():
                server.stop()
    asked = {name: value for name, value in vars(options).items() if name not in ("columns", "output")}
    about = {
        **asked, **{name: Path(asked[name]).name for name in ("model", "stock", "dataset")}, "policy": policy,
        "texts": len(texts.rows), "mean_tokens": float(np.mean(forecast.texts.lengths)), "times": asdict(times),
        "request_seconds": beside, "generator_late_ms": 1000 * load.latest, "torch": torch.__version__,
    }  # fmt: skip
    print("\n" + save(Path(options.output), carried, found, load, about))


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1:2] == ["serve"] else main()
