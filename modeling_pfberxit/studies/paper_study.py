"""A study: what the paper compares, on some tasks and seeds, and where its trainings are kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.tasks import load_task
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import REGRESSION
from . import paper_values as printed
from .comparison import COMMON, Budget, Run, Trained, trained

# What the paper compares, by its own names: all weights trained in three ways, BERxiT, and adapters with each module.
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {"system": "pabee", "exit_weights": "uniform"},
    "alternating": {"system": "pabee", "training_strategy": "alternating", "exit_weights": "uniform"},
    "two-stage": {"system": "deebert"},
    "berxit": {"system": "berxit"},
    **{f"pf-{module}": {"adapter_sublearner": module} for module in ("identity", "conv", "self_attention", "mlp")},
}
DIMENSIONS = {f"r={r}": {"adapter_dim": r, "adapter_num_heads": min(4, r)} for r in printed.BY_DIMENSION}
PLACEMENTS = {place: {"adapter_placement": place} for place in printed.BY_PLACEMENT}
RULES = {
    "branchynet": {"system": "branchynet"}, "shallow-deep": {"system": "shallow-deep"},
    "berxit": {"system": "berxit"}, "pabee": {"system": "pabee"}, "elbert": {"system": "elbert"},
    "pf-mlp": {"adapter_sublearner": "mlp"},
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What to train, on what, and where it is kept."""

    dataset: str
    tasks: tuple[str, ...]
    backbone: str
    seeds: tuple[int, ...]
    budget: Budget
    folder: Path

    def models(self, knobs: dict[str, Any], task: str) -> list[tuple[PFBerxitConfig, Trained]]:
        """One variant on one task, every seed."""
        config = PFBerxitConfig.from_backbone(self.backbone, **{**COMMON, **knobs})
        runs = (Run(self.dataset, task, seed, self.backbone, self.budget) for seed in self.seeds)
        return [(config, trained(self.folder, run, config)) for run in runs]

    def judged(self, task: str) -> list[tuple[PFBerxitConfig, Trained]]:
        """PF-BERxiT with learning-to-exit heads and prototypes, so that every criterion can judge the same model.

        The heads do not move the adapters, the prototypes do, by a tenth of the loss. Regression has no prototypes.
        """
        outcomes = load_task(self.dataset, task)[0].problem_type != REGRESSION
        return self.models({**RULES["pf-mlp"], "use_lte": True, "use_prototypes": outcomes}, task)
