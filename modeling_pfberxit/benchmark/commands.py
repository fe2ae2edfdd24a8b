"""How long the commands on a recording take, on planted recordings of every kind of task."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.nn.functional import one_hot
from transformers import BertConfig

from ..evaluation import plots
from ..evaluation.calibration import all_points, calibrate, conformal, ladder
from ..evaluation.elue_report import scores
from ..evaluation.exit_patterns import drift
from ..evaluation.frontier import layer_scores
from ..evaluation.frontier_report import frontiers, write_csv
from ..evaluation.recording import Recording
from ..evaluation.recording_report import drifting, leaving, save, settling
from ..evaluation.tables import header, line
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import ExitPolicy
from ..model.exits import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence

KINDS = {SINGLE_LABEL: ("accuracy", 3), MULTI_LABEL: ("micro_f1", 20), REGRESSION: ("correlation", 1)}


def planted(problem_type: str, rows: int, exits: int, seed: int = 0) -> Recording:
    """A recording of no model: exits that know more the deeper they stand, and are a little wrong everywhere."""
    generator, (metric, answers) = torch.Generator().manual_seed(seed), KINDS[problem_type]
    noise, known = torch.randn(rows, exits, answers, generator=generator), torch.linspace(0.3, 1, exits)[:, None]
    if problem_type == SINGLE_LABEL:
        labels = torch.randint(answers, (rows,), generator=generator)
        logits = noise + 4 * known * one_hot(labels, answers)[:, None]
    elif problem_type == MULTI_LABEL:
        labels = (torch.rand(rows, answers, generator=generator) < 0.15).float()
        logits = noise - 1.5 + 3 * known * labels[:, None]
    else:
        labels = 5 * torch.rand(rows, generator=generator)
        logits = labels[:, None, None] + (1.2 - known) * noise
    evidence = Evidence(logits, torch.rand(rows, exits, generator=generator))
    lengths = torch.randint(3, 129, (rows,), generator=generator)
    return Recording(evidence, lengths, labels, list(range(1, exits + 1)), problem_type, {"metric": metric})


class Bench:
    """The commands on one recording, as methods of the names they have on the command line or in Python."""

    def __init__(self, recording: Recording, folder: Path):
        self.recording, self.metric, self.folder = recording, recording.source["metric"], folder
        self.parts = recording.split()
        encoder = BertConfig(num_hidden_layers=recording.layers)
        self.config = PFBerxitConfig.from_backbone(encoder, use_lte=True)
        values = recording.problem_type == REGRESSION
        self.policy = ExitPolicy("patience" if values else "entropy", threshold=0.4, patience=2)

    def write_and_read(self) -> None:
        """The recording's file."""
        self.recording.save(self.folder / "a.safetensors")
        Recording.load(self.folder / "a.safetensors")

    def frontier(self) -> None:
        """Every rule, with CSV and picture."""
        found = frontiers(self.recording, self.metric, self.config)
        write_csv(found, self.folder / "frontier.csv")
        full = layer_scores(self.recording, self.metric)[-1]
        plots.frontiers(found, full, self.metric, self.folder / "frontier.png", "planted")

    def calibrate(self) -> None:
        """Two speed-ups, a drop and an agreement."""
        tried = all_points(self.parts[0], self.metric)
        for target in ({"speed_up": 1.25}, {"speed_up": 2.0}, {"max_drop": 0.02}):
            calibrate(*self.parts, self.metric, **target, tried=tried, config=self.config)
        conformal(self.parts[0], self.policy, 0.3)

    def ladder(self) -> None:
        """Six rungs."""
        ladder(*self.parts, self.metric, config=self.config)

    def elue(self) -> None:
        """Every rule against static truncations."""
        scores(str(self.folder / "a.safetensors"), None, None, "layers", None)

    def report(self) -> None:
        """Overthinking, groups, drift, pictures and a line for every row."""
        kept, before = (Recording.load(self.folder / "a.safetensors") for _ in range(2))
        settling(kept)
        drifting(drift(before, kept, self.policy))
        save(kept, self.policy, leaving(kept, self.policy), self.folder / "report")


def benchmark_commands(rows: int, exits: int) -> dict[tuple[str, str], float]:
    """Seconds of every command on a recording of every kind, printed as they are measured."""
    print(f"\n{rows:,} rows x {exits} exits, {torch.get_num_threads()} threads\n")
    print(header(["recording", "command", "seconds"], align="ll"))
    seconds = {}
    for problem_type in KINDS:
        with TemporaryDirectory() as folder:
            bench = Bench(planted(problem_type, rows, exits), Path(folder))
            for name in ("write_and_read", "frontier", "calibrate", "ladder", "elue", "report"):
                seconds[problem_type, name] = timed(getattr(bench, name))
                print(line([problem_type, name, f"{seconds[problem_type, name]:.1f}"]), flush=True)
    return seconds


def timed(command: Callable[[], None]) -> float:
    """Seconds a command takes."""
    started = time.perf_counter()
    command()
    return time.perf_counter() - started
