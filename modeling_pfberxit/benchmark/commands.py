"""How long the commands on a recording take, on planted recordings of every kind of task."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from ..model.exit_policy import ExitPolicy

# By problem type: the metric, and how many answers an exit gives.
KINDS = {SINGLE_LABEL: ("accuracy", 3), MULTI_LABEL: ("micro_f1", 20), REGRESSION: ("correlation", 1)}


def planted(problem_type: str, rows: int, exits: int, seed: int = 0) -> Recording:
    """A recording made without a model: exits that are more often right the deeper they are, and nowhere always."""
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


class Commands:
    """The commands on one recording, one method each; files go to a folder."""

    def __init__(self, recording: Recording, folder: Path) -> None:
        self.recording, self.metric, self.folder = recording, recording.source["metric"], folder
        self.parts = recording.split()
        encoder = BertConfig(num_hidden_layers=recording.layers)
        self.config = PFBerxitConfig.from_backbone(encoder, use_lte=True)
        values = recording.problem_type == REGRESSION
        self.policy = ExitPolicy("patience" if values else "entropy", threshold=0.4, patience=2)

    def write_and_read(self) -> None:
        """Save the recording and load it."""
        self.recording.save(self.folder / "a.safetensors")
        Recording.load(self.folder / "a.safetensors")

    def frontier(self) -> None:
        """The frontier of every rule, as CSV and picture."""
        found = frontiers(self.recording, self.metric, self.config)
        write_csv(found, self.folder / "frontier.csv")
        full = layer_scores(self.recording, self.metric)[-1]
        plots.frontiers(found, full, self.metric, self.folder / "frontier.png", "planted")

    def calibrate(self) -> None:
        """Points for two speed-ups, a drop of the score and an agreement with full depth."""
        tried = all_points(self.parts[0], self.metric)
        targets: list[dict[str, Any]] = [{"speed_up": 1.25}, {"speed_up": 2.0}, {"max_drop": 0.02}]
        for target in targets:
            calibrate(*self.parts, self.metric, **target, tried=tried, config=self.config)
        conformal(self.parts[0], self.policy, 0.3)

    def ladder(self) -> None:
        """A ladder of six points."""
        ladder(*self.parts, self.metric, config=self.config)

    def elue(self) -> None:
        """The ELUE score of every rule against static truncations."""
        scores(str(self.folder / "a.safetensors"), None, None, "layers", None)

    def report(self) -> None:
        """Overthinking, groups, drift, pictures and a CSV line for every row."""
        kept, before = (Recording.load(self.folder / "a.safetensors") for _ in range(2))
        settling(kept)
        drifting(drift(before, kept, self.policy))
        save(kept, self.policy, leaving(kept, self.policy), self.folder / "report")


def benchmark_commands(rows: int, exits: int, say: Callable[[str], None]) -> dict[tuple[str, str], float]:
    """Seconds by problem type and command; `say` is called with each line of the table as it is measured."""
    say(f"\n{rows:,} rows x {exits} exits, {torch.get_num_threads()} threads\n")
    say(header(["recording", "command", "seconds"], align="ll"))
    seconds = {}
    for problem_type in KINDS:
        with TemporaryDirectory() as folder:
            commands = Commands(planted(problem_type, rows, exits), Path(folder))
            for name in ("write_and_read", "frontier", "calibrate", "ladder", "elue", "report"):
                seconds[problem_type, name] = timed(getattr(commands, name))
                say(line([problem_type, name, f"{seconds[problem_type, name]:.1f}"]))
    return seconds


def timed(command: Callable[[], None]) -> float:
    """Seconds a command takes."""
    started = time.perf_counter()
    command()
    return time.perf_counter() - started
