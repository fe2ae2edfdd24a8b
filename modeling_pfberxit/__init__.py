"""PF-BERxiT and its relatives: early exiting with parameter-efficient fine-tuning, at home on the Hugging Face Hub."""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from .model.configuration_pfberxit import PFBerxitConfig
from .model.exit_policy import ExitPolicy
from .model.modeling_pfberxit import PFBerxitForSequenceClassification, PFBerxitModel, PFBerxitOutput
from .pipeline import EarlyExitPipeline, register

AutoConfig.register(PFBerxitConfig.model_type, PFBerxitConfig, exist_ok=True)
AutoModel.register(PFBerxitConfig, PFBerxitModel, exist_ok=True)
AutoModelForSequenceClassification.register(PFBerxitConfig, PFBerxitForSequenceClassification, exist_ok=True)
register()
# Whatever is saved carries its code along.
PFBerxitConfig.register_for_auto_class()
PFBerxitModel.register_for_auto_class("AutoModel")
PFBerxitForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__version__ = "0.1.0"
__all__ = [
    "EarlyExitPipeline",
    "ExitPolicy",
    "PFBerxitConfig",
    "PFBerxitForSequenceClassification",
    "PFBerxitModel",
    "PFBerxitOutput",
]
