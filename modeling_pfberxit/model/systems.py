"""`SYSTEMS`: published methods, each as the values of `PFBerxitConfig` that make it.

Nothing else in the code knows a system's name. Where a paper leaves a value open, `reading` says what was chosen here
and why. What the values do is in the files that read them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .evidence import PolicyFields
from .validation import entry_of


class System(NamedTuple):
    """Where a system comes from, its values for an encoder of n layers, and what is ours in them."""

    source: str
    knobs: Callable[[int], dict[str, Any]]
    reading: str = ""  # "our reading" of what the paper leaves open, and why

    @property
    def criterion(self) -> str | None:
        """The rule by which rows leave, on any encoder; None: they do not."""
        return self.knobs(12).get("exit_criterion", PolicyFields.criterion)


# The field's usual setting: all weights move, linear exits read the encoder's own pooler.
TRAINED = {
    "train_backbone": True, "adapter_placement": "none", "exit_pooling": "cls", "exit_pooler": "backbone",
}  # fmt: skip
OWN_POOLERS = {**TRAINED, "exit_pooler": "own"}

SYSTEMS: dict[str, System] = {
    "pf-berxit": System("PF-BERxiT (Neurocomputing 2023)", lambda layers: {}),
    "f-pabee": System(
        "F-PABEE (ICASSP 2023)", lambda layers: {**TRAINED, "exit_divergence": "jskd"},
        "Patience 2: the paper gives no value.",
    ),
    "pabee": System(
        "PABEE (NeurIPS 2020)", lambda layers: {**TRAINED, "exit_criterion": "patience", "exit_patience": 3}
    ),
    "berxit": System(
        "BERxiT (EACL 2021)",
        lambda layers: {
            **TRAINED, "training_strategy": "alternating", "exit_weights": "uniform", "use_lte": True,
            "exit_criterion": "lte",
        },
        "The exits read the encoder's pooler, as PF-BERxiT's Table 2 counts them; the released code gives each its "
        "own (exit_pooler='own'). LTE heads do not steer the encoder.",
    ),
    "branchynet": System(
        "BranchyNet (ICPR 2016)", lambda layers: {**TRAINED, "exit_criterion": "entropy"},
        "The paper sets the weights of the losses by hand; here they follow the depth.",
    ),
    "deebert": System(
        "DeeBERT (ACL 2020)",
        lambda layers: {
            **OWN_POOLERS, "training_strategy": "two_stage", "exit_weights": "uniform", "exit_criterion": "entropy",
        },
    ),
    "shallow-deep": System(
        "Shallow-Deep Networks (ICML 2019)",
        lambda layers: {**TRAINED, "exit_weights": "rising", "exit_criterion": "max_prob"},
        "The weights rise step by step instead of epoch by epoch.",
    ),
    "elbert": System(
        "ELBERT (ICASSP 2021)",
        lambda layers: {
            **TRAINED, "exit_shared": True, "exit_weights": "learned", "exit_criterion": "window",
            "exit_normalize": True, "exit_window": max(2, layers // 3),
        },
        "The window's rule is `agree`; `monotone` and `narrow` are the released code's others. More than two classes "
        "are our generalisation.",
    ),
    "badge": System(
        "BADGE (ACL 2023, industry track)",
        lambda layers: {
            "adapter_placement": "bypass", "exit_criterion": "dge", "exit_divergence": "symkl_div", "exit_window": 2,
        },
        "Our reading, since no formula is public: the bypasses are bottleneck adapters that feed only the exits, on a "
        "frozen encoder; the criterion is the mean symmetrised divergence from the last two exits.",
    ),
    "de3-bert": System(
        "DE3-BERT (2024)", lambda layers: {**TRAINED, "use_prototypes": True, "exit_criterion": "distance"},
        "Our reading, since distances and loss weights are not public: the ratio compares the predicted class with the "
        "nearest other one; prototypes learn by a softmax over distances, weighted 0.1.",
    ),
    "elasticbert": System(
        "ElasticBERT (NAACL 2022)",
        lambda layers: {
            **OWN_POOLERS, "exit_weights": "uniform", "gradient_equilibrium": True, "exit_criterion": "entropy",
        },
        "Fine-tuning and inference; its multi-exit pre-training is not part of this library.",
    ),
    "hashee": System(
        "HashEE (Findings of ACL 2022)",
        lambda layers: {**TRAINED, "exit_layers": [layers], "exit_criterion": None, "token_exits": True},
        "Sequence classification only. The table of token depths is fitted by `training.fit_token_exits`.",
    ),
    "late-prompt-tuning": System(
        "Late Prompt Tuning (Findings of EMNLP 2022)",
        lambda layers: {
            "adapter_placement": "none", "exit_layers": [layers], "exit_criterion": None, "prompt_generator": "npg",
            "prompt_layer": layers // 2,
        },
        "A linear classifier takes the place of the paper's words predicted for a mask.",
    ),
    "fastbert": System(
        "FastBERT (ACL 2020)",
        lambda layers: {
            **TRAINED, "exit_pooler": "none", "adapter_placement": "bypass", "adapter_sublearner": "self_attention",
            "adapter_dim": 128, "adapter_num_heads": 2, "training_strategy": "two_stage", "exit_weights": "uniform",
            "distillation": 1.0, "distillation_divergence": "kl_div", "exit_criterion": "entropy",
            "exit_normalize": True,
        },
        "A branch is a bottleneck self-attention beside the states it reads, with a way back up to their size.",
    ),
    "pcee-bert": System(
        "PCEE-BERT (Findings of NAACL 2022)",
        lambda layers: {**TRAINED, "exit_criterion": "pcee", "exit_normalize": True},
    ),
    "appointed": System(
        "A fixed exit layer",
        lambda layers: {**TRAINED, "exit_criterion": "appointed", "exit_appointed_layer": max(1, layers // 2)},
    ),
}  # fmt: skip


def check_system(name: str) -> None:
    """Refuse a system this library does not know, naming those it does."""
    entry_of(SYSTEMS)("system", name)


def system_values(name: str | None, layers: int) -> dict[str, Any]:
    """A system's values for an encoder of so many layers; none without a system."""
    return {} if name is None else SYSTEMS[name].knobs(layers)
