"""What an exported file and a server both say of a model; needs no ONNX."""

from importlib.metadata import PackageNotFoundError, version

from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.evidence import MULTI_LABEL, REGRESSION


def activation_of(config: PFBerxitConfig) -> str:
    """What makes scores of logits, as `pipeline` has it."""
    if config.problem_type == REGRESSION:
        return "none"
    return "sigmoid" if config.problem_type == MULTI_LABEL or config.num_labels == 1 else "softmax"


def library_version() -> str:
    """Of this package, as it is installed."""
    try:
        return version("modeling-pfberxit")
    except PackageNotFoundError:
        return "unknown"
