"""A study: the variants that the paper compares, trained on some tasks and seeds, and kept in a folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..data.source import Source
from ..model.adapters import SUBLEARNERS
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import REGRESSION
from . import paper_values
from .compared import COMMON
from .runs import Budget, Run
from .trainings import Trained, trained

logger = logging.get_logger(__name__)

# By the paper's names: all weights trained in three ways, BERxiT, and adapters with each sub-learning module.
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {"system": "pabee", "exit_weights": "uniform"},
    "alternating": {"system": "pabee", "training_strategy": "alternating", "exit_weights": "uniform"},
    "two-stage": {"system": "deebert"},
    "berxit": {"system": "berxit"},
    **{f"pf-{module}": {"adapter_sublearner": module} for module in SUBLEARNERS},
}
DIMENSIONS = {f"r={r}": {"adapter_dim": r, "adapter_num_heads": min(4, r)} for r in paper_values.BY_DIMENSION}
PLACEMENTS = {place: {"adapter_placement": place} for place in paper_values.BY_PLACEMENT}
RULES = {
    "branchynet": {"system": "branchynet"}, "shallow-deep": {"system": "shallow-deep"},
    "berxit": {"system": "berxit"}, "pabee": {"system": "pabee"}, "elbert": {"system": "elbert"},
    "pf-mlp": {"adapter_sublearner": "mlp"},
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Data, encoder, seeds and budget of trainings, and the folder that keeps them."""

    dataset: str
    tasks: tuple[str, ...]
    backbone: str
    seeds: tuple[int, ...]
    budget: Budget
    folder: Path
    columns: dict[str, Any] = field(default_factory=dict)  # what they mean, as `load_task` takes it
    variants: tuple[str, ...] = ()  # of `gap`, the one that the others are compared with in front; () all
    say: Callable[[str], None] = logger.info  # called with a line for every training
    sources: dict[str, Source] = field(default_factory=dict, init=False, repr=False)

    def source(self, task: str) -> Source:
        """A task's data, read once."""
        if task not in self.sources:
            self.sources[task] = Source.read(self.dataset, task, **self.columns)
        return self.sources[task]

    def runs(self, task: str) -> list[Run]:
        """A task's runs, one for every seed."""
        return [Run(self.source(task), self.backbone, seed, self.budget) for seed in self.seeds]

    def models(self, knobs: dict[str, Any], task: str) -> list[tuple[PFBerxitConfig, Trained]]:
        """The config and recordings of one variant on one task, for every seed."""
        return [self.model(knobs, run) for run in self.runs(task)]

    def model(self, knobs: dict[str, Any], run: Run) -> tuple[PFBerxitConfig, Trained]:
        """The config and recordings of one variant and run."""
        config = PFBerxitConfig.from_backbone(self.backbone, **{**COMMON, **knobs})
        return config, trained(self.folder, run, config, self.say)

    def judged(self, task: str) -> list[tuple[PFBerxitConfig, Trained]]:
        """PF-BERxiT with learning-to-exit heads, prototypes and NSP, so that every criterion can judge the same model.

        The heads do not train the adapters; the prototypes do, by a tenth of the loss. Regression has no prototypes.
        """
        outcomes = self.source(task).task.problem_type != REGRESSION
        return self.models({**RULES["pf-mlp"], "use_lte": True, "use_prototypes": outcomes, "use_nsp": True}, task)
