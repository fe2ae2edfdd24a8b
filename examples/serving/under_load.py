"""A served model under load on loopback, beside its stock classifier behind the same server, each side on a core.

    python examples/serving/under_load.py faster my-classifier texts.csv --text text --minutes 4

`faster` is a folder that `pfberxit retrofit my-classifier` made, with certified points. Servers: the stock classifier
in `transformers` and in ONNX Runtime, ours at its most careful certified point in PyTorch and in its ONNX file, and
both with the controller (`pfberxit serve --differ`). Parts:

1. `carries`: the highest steady rate at which p99 stays under `--within` ms (the stock classifier's is its capacity);
2. `steady`: 60 % of it, `--repeats` times;  3. `quiet`: a quarter of it;
4. `burst`: three times the quiet rate for 30 s; `heavy`: three times the 60 %; with and without the controller.

Each measurement is kept in `--files` as soon as it is done; where the minutes are over the script ends, and the next
call with the same options goes on. Ours in PyTorch is simulated under the same traffic; numbers of what there is go to
under_load.json and .md in `--output`, latencies in bursts to .png.
"""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from servers import OURS, RIVALS, STOCK, Server, add_inputs, digest, exported, texts_of

PORT, STARTING, EDGE = 8560, 20.0, 5.0  # seconds: until a server is warm; before and behind a burst
FILE, STEERED, FILE_STEERED = "ours, ONNX", "ours, controller", "ours, ONNX, controller"
WITHOUT_EFFECT = ("model", "stock", "files", "output", "minutes", "repeats")  # on one measurement
SERVERS = {
    "carries": (*RIVALS, OURS, FILE), "steady": (*RIVALS, OURS, FILE), "quiet": (OURS, STEERED, FILE, FILE_STEERED),
    "burst": (OURS, STEERED, FILE, FILE_STEERED), "heavy": (OURS, STEERED, FILE, FILE_STEERED),
}  # fmt: skip


def arguments() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_inputs(parser)
    parser.add_argument("--policy", help="the point of ours without a controller (default: the most careful certified)")
    parser.add_argument("--differ", type=float, default=0.05, help="the controller's floor (default: %(default)s)")
    for name, default, what in (
        ("--probe", 4.0, "seconds of each rate that is tried"), ("--burst", 30.0, "seconds of a burst"),
        ("--within", 200.0, "ms that p99 has to stay under where the capacity is looked for"),
        ("--minutes", 4.0, "after which no measurement is begun that would take longer"),
    ):  # fmt: skip
        parser.add_argument(name, type=float, default=default, help=f"{what} (default: %(default)s)")
    for name, number, what in (
        ("--probes", 5, "rates tried for the capacity"), ("--requests", 2000, "of a steady or quiet run"),
        ("--repeats", 3, "of the steady part"),
    ):  # fmt: skip
        parser.add_argument(name, type=int, default=number, help=f"{what} (default: %(default)s)")
    parser.add_argument("--output", default="under_load", help="folder (default: %(default)s)")
    return parser.parse_args()


# ---- what is measured ------------------------------------------------------------------------------------------------


class Kept:
    """Measurements by part, server and number, each in a file of its own; those under other options in another folder.

    Attributes:
        late: seconds that the generator was behind at most, of what was read.
    """

    def __init__(self, options: Namespace) -> None:
        asked = {name: value for name, value in sorted(vars(options).items()) if name not in WITHOUT_EFFECT}
        self.folder = Path(options.files) / digest(options.model, options.stock, asked)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.late = 0.0

    def path(self, part: str, server: str, number: int = 0) -> Path:
        """Where one is."""
        return self.folder / f"{part}-{server.replace(', ', '-').replace(' ', '-')}-{number}.npz"

    def put(self, run: Any, late: float, *key: Any) -> None:
        """Keep a run."""
        draft = self.folder / "draft.npz"
        np.savez(draft, late=late, **{**vars(run), "rungs": run.rungs.astype(str)})
        draft.replace(self.path(*key))

    def run(self, *key: Any) -> Any:
        """Read one back."""
        from modeling_pfberxit.traffic.runs import Run

        found = dict(np.load(self.path(*key)))
        self.late = max(self.late, float(found.pop("late")))
        return Run(**{name: value if value.ndim else float(value) for name, value in found.items()})

    def carries(self, server: str, save: float | None = None) -> float:
        """What a server carries, requests a second; NaN: not measured yet."""
        path = self.path("carries", server).with_suffix(".json")
        if save is not None:
            path.write_text(json.dumps(save), encoding="utf-8")
        return float(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else np.nan


class Load:
    """Sends traffic to one server at a time, which is started when it is first asked."""

    def __init__(self, options: Namespace, cases: dict[str, tuple], texts: list, answers: list[str]) -> None:
        self.options, self.cases, self.texts, self.answers = options, cases, texts, answers
        self.name, self.server = "", None
        self.end = time.monotonic() + 60 * options.minutes

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether a measurement of so many seconds would end in time."""
        return time.monotonic() + seconds + (0.0 if name == self.name else STARTING) < self.end

    def send(self, name: str, arrivals: np.ndarray, seconds: float, seed: int = 0) -> Any:
        """What became of requests at these moments, and the CPU seconds that it took."""
        from modeling_pfberxit.traffic.load import send
        from modeling_pfberxit.traffic.traces import drawn

        server = self.started(name)
        before = server.cpu
        sent = send(
            server.url, self.texts, drawn(len(self.texts), len(arrivals), seed), arrivals, seconds, self.answers
        )
        sent.run.busy = server.cpu - before
        return sent

    def started(self, name: str) -> Server:
        """A server that is warm; the one before it is stopped."""
        if name != self.name:
            self.stop()
            number = list(self.cases).index(name)
            kind, model, *more = self.cases[name]
            self.name, self.server = name, Server(kind, model, PORT + number, self.options.cores[0], *more)
            self.server.wait()
            self.send(name, np.arange(40) * 0.05, 2.0)  # caches are warm
        return self.server  # type: ignore[return-value]

    def stop(self) -> None:
        """End the server that runs."""
        if self.server is not None:
            self.server.stop()
        self.name, self.server = "", None

    def carries(self, name: str) -> float:
        """The highest of some steady rates at which p99 is under the limit; 0: none was."""
        from modeling_pfberxit.traffic.runs import Outcome
        from modeling_pfberxit.traffic.traces import steady

        crowd = self.send(name, np.zeros(160), 1.0).run
        rate = 0.75 * 160 / np.nanmax(crowd.latency)
        low, high = 0.0, 1.5 * rate
        for number in range(self.options.probes):
            trace = steady(self.options.probe)
            found = Outcome.of(self.send(name, trace.arrivals(rate, seed=number), trace.seconds, number).run)
            low, high = (rate, high) if found.p99 <= self.options.within and not found.refused else (low, rate)
            rate = (low + high) / 2
        return float(low)


def traffic(part: str, capacity: float, options: Namespace) -> tuple[Any, float]:
    """A part's trace, and its usual requests a second."""
    from modeling_pfberxit.traffic.traces import burst, steady

    rate = capacity * (0.25 if part in ("quiet", "burst") else 0.6)
    if part in ("quiet", "steady"):
        return steady(options.requests / rate), rate
    return burst(options.burst + 2 * EDGE, options.burst), rate


def measure(load: Load, kept: Kept, options: Namespace) -> bool:
    """Measure what is missing, server by server, as long as there is time; whether all is there."""
    order = [STOCK, *(name for name in load.cases if name != STOCK)]
    for name in order:
        if name in SERVERS["carries"] and np.isnan(kept.carries(name)):
            if not load.has_time(name, options.probes * (options.probe + 2) + 5):
                return False
            print(f"{name} carries {kept.carries(name, load.carries(name)):.1f} requests/s", flush=True)
            if not kept.carries(STOCK):
                raise SystemExit(f"{STOCK} answers at no rate within {options.within:g} ms: give a higher --within")
        for part, number in (("steady", n) for n in range(options.repeats)):
            if not take(load, kept, options, part, name, number):
                return False
        for part in ("quiet", "burst", "heavy"):
            if not take(load, kept, options, part, name, 0):
                return False
    return True


def take(load: Load, kept: Kept, options: Namespace, part: str, name: str, number: int) -> bool:
    """Measure one part of a server, unless it was or is not asked for; False: there is no time left."""
    if name not in SERVERS[part] or kept.path(part, name, number).exists():
        return True
    trace, rate = traffic(part, kept.carries(STOCK), options)
    if not load.has_time(name, trace.seconds + 5):
        return False
    sent = load.send(name, trace.arrivals(rate, seed=number), trace.seconds, number)
    kept.put(sent.run, sent.late, part, name, number)
    told = (
        f"p99 {1000 * np.nanquantile(sent.run.latency, 0.99):.0f} ms, {1000 * sent.run.busy / len(sent.beside):.2f} ms"
    )
    print(f"{part}, {name}: {dict(sent.statuses)}, {told} of CPU, late {1000 * sent.late:.0f} ms", flush=True)
    return True


# ---- results ---------------------------------------------------------------------------------------------------------


def results(kept: Kept, simulated: Callable, options: Namespace) -> tuple[dict, dict]:
    """Outcomes by part and server, medians of repeated runs, the simulated beside; and the runs of bursts."""
    from modeling_pfberxit.traffic.runs import Outcome

    found, bursts = {}, {}
    for part, names in list(SERVERS.items())[1:]:
        for name in names:
            trace, rate = traffic(part, kept.carries(STOCK), options)
            numbers = [n for n in range(options.repeats) if kept.path(part, name, n).exists()]
            if not numbers:
                continue
            runs = {name: [kept.run(part, name, number) for number in numbers]}
            if name in (OURS, STEERED):
                runs[f"{name}, simulated"] = [simulated(name, trace, rate, number) for number in numbers]
            if part in ("burst", "heavy"):
                bursts[part, name] = [each[0] for each in runs.values()]
                runs = {each: [run.between(EDGE, EDGE + options.burst) for run in some] for each, some in runs.items()}
            for each, some in runs.items():
                found[part, each] = middle([Outcome.of(run) for run in some])
    print(f"the generator was {1000 * kept.late:.0f} ms late at most")
    return found, bursts


def middle(outcomes: list) -> Any:
    """The median of every number of repeated runs."""
    kind = type(outcomes[0])
    return kind(**{each.name: median(getattr(one, each.name) for one in outcomes) for each in fields(kind)})


def save(folder: Path, carried: dict, found: dict, bursts: dict, about: dict) -> str:
    """Write json, md and png; the tables."""
    from modeling_pfberxit.evaluation.plots import COLOURS, finish_panels, panels_of
    from modeling_pfberxit.evaluation.tables import table
    from modeling_pfberxit.traffic.runs import as_markdown

    folder.mkdir(parents=True, exist_ok=True)
    parts = [[*key, {k: None if v != v else v for k, v in asdict(each).items()}] for key, each in found.items()]
    numbers = {"about": about, "carries": carried, "parts": parts}
    (folder / "under_load.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    rates = table(
        ["server", f"requests/s at p99 < {about['within']:g} ms"],
        [[name, f"{rate:.1f}"] for name, rate in carried.items()],
    )
    text = f"{rates}\n\n{as_markdown(found, ['part', 'server'])}\n"
    (folder / "under_load.md").write_text(text, encoding="utf-8")
    if not bursts:
        return text
    figure, panels = panels_of([f"{part}: {name}" for part, name in bursts], (10, 6), 4, sharey=True)
    for axes, runs in zip(panels, bursts.values()):
        for run, colour in zip(runs, COLOURS):
            axes.plot(run.arrivals, 1000 * run.latency, ".", ms=2, color=colour)
        axes.set_yscale("log")
    finish_panels(figure, "seconds", "ms (blue: measured, orange: simulated)", folder / "under_load.png", "bursts")
    return text


def main() -> None:
    options = arguments()
    import torch

    from modeling_pfberxit.serving.controller import Controller, Fixed
    from modeling_pfberxit.serving.models import spare_collections
    from modeling_pfberxit.traffic.batch_times import load_times, save_times
    from modeling_pfberxit.traffic.forecast import KnownModel
    from modeling_pfberxit.traffic.load import pin, request_cost
    from modeling_pfberxit.traffic.sizing import Machine

    pin(options.cores[1])
    torch.set_num_threads(1)
    kept, file = Kept(options), exported(options.model, options.files)
    (texts, found), known = texts_of(options), KnownModel(options.model)
    forecast = known.forecast(found.rows, found.names)
    policy = options.policy or forecast.ladder[min(1, len(forecast.ladder) - 1)].name
    fixed, floor = ["--policy", policy], ["--differ", str(options.differ)]
    cases: dict[str, tuple] = {name: (kind, options.stock) for name, kind in RIVALS.items()}
    cases |= {OURS: (OURS, options.model, *fixed), STEERED: (OURS, options.model, *floor)}
    cases |= {FILE: (OURS, file, *fixed), FILE_STEERED: (OURS, file, *floor)}
    load = Load(options, cases, texts, forecast.single_labels())
    spare_collections()  # else one of them holds the generator up for half a second
    try:
        if not (timed := kept.folder / "machine.json").exists():
            cost = request_cost(load.started(OURS).url, texts)
            save_times(known.times(texts), timed, {"core": cost.core, "outside": cost.outside})
        if not measure(load, kept, options):
            print("The minutes are over: call again for what is missing.", flush=True)
    finally:
        load.stop()
    known_of_it = json.loads(timed.read_text(encoding="utf-8"))
    machine = Machine(load_times(timed), known_of_it["core"], outside=known_of_it["outside"])

    def simulated(name: str, trace: Any, rate: float, seed: int) -> Any:
        """The same traffic, simulated."""
        steer = Fixed(forecast.ladder, policy) if name == OURS else Controller(forecast.ladder, options.differ)
        return machine.simulator(forecast.texts, seed).run(trace.arrivals(rate, seed=seed), trace.seconds, [steer])

    outcomes, bursts = results(kept, simulated, options)
    asked = {name: value for name, value in vars(options).items() if name not in ("columns", "output", "files")}
    about = {
        **asked, **{name: Path(asked[name]).name for name in ("model", "stock", "dataset")}, "policy": policy,
        "texts": len(texts), "mean_tokens": float(np.mean(forecast.texts.lengths)), "request_seconds": machine.request,
        "outside_seconds": machine.outside, "late_seconds": kept.late,
        "times": asdict(machine.times), "torch": torch.__version__,
    }  # fmt: skip
    carried = {name: rate for name in SERVERS["carries"] if not np.isnan(rate := kept.carries(name))}
    print("\n" + save(Path(options.output), carried, outcomes, bursts, about))


if __name__ == "__main__":
    main()
