"""Servers that are measured: each a process of its own on one core, ours by the command, stock ones by the same code.

As a script (`python servers.py KIND MODEL PORT CORE [options of pfberxit serve]`) it is one of them. On SIGUSR1 it
writes the CPU seconds of its threads and of their parts to the file in $PARTS, where there is one.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

OURS = "ours"
STOCK, STOCK_FILE = "stock transformers", "ONNX Runtime, full depth"
RIVALS = {STOCK: "torch", STOCK_FILE: "onnxruntime"}


class Server:
    """A server in a process of its own, and what it has cost.

    Args:
        kind: `OURS`, or a runtime of `traffic.rivals`.
        model: what it serves.
        core: that it is kept on.
        options: further ones of `pfberxit serve`.
        parts: whether its CPU time is counted by part, which takes a microsecond for each.
    """

    def __init__(self, kind: str, model: str, port: int, core: int, *options: str, parts: bool = False) -> None:
        import psutil

        self.log, self.report = tempfile.TemporaryFile(), Path(tempfile.mkdtemp()) / "parts.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"PARTS": str(self.report)} if parts else {}
        command = [sys.executable, __file__, kind, model, str(port), str(core), *options]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)
        self.url, self.usage = f"http://127.0.0.1:{port}", psutil.Process(self.process.pid)

    def wait(self, seconds: float = 180.0) -> None:
        """Until it is warm; raises a RuntimeError with what it said where it does not come up."""
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

    def parts(self) -> Counter:
        """Seconds that its parts have computed, by name; of a server that counts them."""
        self.report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        while not self.report.exists():
            time.sleep(0.01)
        return Counter(json.loads(self.report.read_text(encoding="utf-8")))

    def stop(self) -> None:
        """End it as an operator would."""
        self.process.terminate()
        self.process.wait(40)


# ---- what scripts share ----------------------------------------------------------------------------------------------


def add_inputs(parser: ArgumentParser) -> None:
    """A model, the classifier that it was made from, texts, cores, and where the exported file is kept."""
    from pfberxit.options import add_text_columns

    parser.add_argument("model", help="folder of a retrofitted model with certified points")
    parser.add_argument("stock", help="the stock classifier that it was made from")
    parser.add_argument("dataset", metavar="DATA", help="texts that are asked, as `pfberxit predict` takes them")
    parser.add_argument("--config")
    parser.add_argument("--split")
    add_text_columns(parser, label=False)
    parser.add_argument("--cores", nargs=2, type=int, default=[0, 1], help="of servers, and of the load (default: 0 1)")
    parser.add_argument(
        "--files", default="under_load.files", help="folder that keeps what was made (default: %(default)s)"
    )


def texts_of(options: Namespace) -> tuple[list, Any]:
    """The texts, as requests send them, and as `load_texts` gives them."""
    from modeling_pfberxit.data.texts import load_texts
    from modeling_pfberxit.traffic.forecast import asked_of

    found = load_texts(options.dataset, options.config, **options.columns, split=options.split)
    return asked_of(found.rows, found.names), found


def digest(*parts: Any) -> str:
    """A name for a folder of what these gave: of folders all files count, of other things what they say."""
    found = sha256()
    for part in parts:
        files = sorted(Path(part).glob("*.*")) if isinstance(part, str) and Path(part).is_dir() else []
        for file in files:
            found.update(file.name.encode() + file.read_bytes())
        found.update(b"" if files else repr(part).encode())
    return found.hexdigest()[:12]


def exported(model: str, files: str) -> str:
    """The model as an ONNX file in a folder of its own; one that is there is taken."""
    from modeling_pfberxit.evaluation.saved_model import load_model
    from modeling_pfberxit.export.files import export_file

    file = Path(files) / digest(model) / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        export_file(*load_model(model, "cpu"), str(file), None)
    return str(file)


# ---- in its process --------------------------------------------------------------------------------------------------


def serve(kind: str, model: str, port: str, core: str, *options: str) -> None:
    """One server on one core, until SIGTERM."""
    from modeling_pfberxit.traffic.load import pin

    pin(int(core))
    if "PARTS" in os.environ:
        count_parts(Path(os.environ["PARTS"]))
    if kind == OURS:
        from pfberxit.cli import main

        return main(["serve", model, "--port", port, "--threads", "1", *options])
    import torch

    from modeling_pfberxit.serving.meter import PrometheusMeter
    from modeling_pfberxit.serving.start import Loading, Place, Rule, make_service, server_of
    from modeling_pfberxit.traffic.rivals import FullDepth

    torch.set_num_threads(1)
    service = make_service(FullDepth(model, kind), Rule(), Loading(), {}, meter=PrometheusMeter())
    return server_of(service, Place(port=int(port))).run()


def count_parts(report: Path) -> None:
    """Have the CPU time of what a request needs counted by part, and reported on SIGUSR1."""
    from modeling_pfberxit.serving import engine, predictors, routes
    from modeling_pfberxit.serving.connections import LimitedProtocol
    from modeling_pfberxit.serving.meter import PrometheusMeter
    from modeling_pfberxit.traffic.rivals import FullDepth

    spent: Counter = Counter()
    batches, told = "engine: form, deliver, count", "JSON in and out"
    named = [
        (engine.Engine, "judge", "held against full depth"), (engine.Engine, "formed", batches),
        (engine.Engine, "deliver", batches), (engine.Engine, "tell", batches), (routes, "as_predict", told),
        (routes, "worded", told), (routes.JSONResponse, "render", told),
        (LimitedProtocol, "data_received", "HTTP in and out"), (PrometheusMeter, "request", "counting requests"),
    ]  # fmt: skip
    for predictor in (predictors.TorchPredictor, predictors.OnnxPredictor, FullDepth):
        named += [(predictor, "run", "model"), (predictor, "read", "tokens")]
    for owner, name, part in named:
        counted(owner, name, part, spent)

    def write(*_: object) -> None:
        """All that was counted, and what is left of threads."""
        clocks = {thread.name: time.pthread_getcpuclockid(thread.ident) for thread in threading.enumerate()}
        threads = {f"thread {name}": time.clock_gettime(clock) for name, clock in clocks.items()}
        draft = report.with_suffix(".part")
        draft.write_text(json.dumps({**spent, **threads, "all": time.process_time()}), encoding="utf-8")
        draft.replace(report)

    signal.signal(signal.SIGUSR1, write)


def counted(owner: object, name: str, part: str, spent: Counter) -> None:
    """Count the CPU time of a function's thread to a part, unless it is called inside one that is counted."""
    function: Callable = getattr(owner, name)

    @wraps(function)
    def timed(*given: object, **options: object) -> object:
        """The function itself."""
        if getattr(inside, "one", False):
            return function(*given, **options)
        inside.one, began = True, time.thread_time()
        try:
            return function(*given, **options)
        finally:
            took = time.thread_time() - began
            spent[part] += took
            spent[f"parts of {threading.current_thread().name}"] += took
            inside.one = False

    setattr(owner, name, timed)


inside = threading.local()

if __name__ == "__main__":
    serve(*sys.argv[1:])
