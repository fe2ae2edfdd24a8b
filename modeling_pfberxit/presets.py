"""The files of `configuration/`: ready-made configs, written by `python -m modeling_pfberxit.presets`.

* `<encoder>-<sub-learner>.json`: PF-BERxiT as the paper lays it out, one for each sub-learning module;
* `systems/<system>.json`: every published system on ALBERT-base (ElasticBERT on its own encoder).

`PFBerxitConfig.from_pretrained(path)` reads them, `PFBerxitForSequenceClassification.from_backbone(config)` fetches the
encoder. Its commit is left open and pinned when it is fetched.
"""

import json
from pathlib import Path

from transformers import AlbertConfig, BertConfig, PreTrainedConfig

from .configuration_pfberxit import CHECKS, PFBerxitConfig
from .systems import SYSTEMS

FOLDER = Path(__file__).parent.parent / "configuration"
ALBERT_BASE = AlbertConfig(
    hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12, vocab_size=30000,
    bos_token_id=0, eos_token_id=3,
)  # fmt: skip
ENCODERS: dict[str, PreTrainedConfig] = {
    "albert/albert-base-v2": ALBERT_BASE,
    "google-bert/bert-base-uncased": BertConfig(),
    "fnlp/elasticbert-base": BertConfig(),
}
SUBLEARNERS = ("identity", "self_attention", "conv", "mlp")
# As the paper counts it: exits on the encoder's own pooler, one learning-to-exit head per layer.
PAPER = {"exit_pooling": "cls", "exit_pooler": "backbone", "use_lte": True, "lte_shared": False}


def presets() -> dict[str, PFBerxitConfig]:
    """Every preset by its path within `configuration/`, without .json."""
    made = {
        f"{encoder.rpartition('/')[2]}-{sublearner.replace('_', '-')}": preset(
            encoder, **PAPER, adapter_sublearner=sublearner
        )
        for encoder in ("albert/albert-base-v2", "google-bert/bert-base-uncased")
        for sublearner in SUBLEARNERS
    }
    for system in SYSTEMS:
        encoder = "fnlp/elasticbert-base" if system == "elasticbert" else "albert/albert-base-v2"
        made[f"systems/{system}"] = preset(encoder, system=system)
    return made


def preset(encoder: str, **knobs) -> PFBerxitConfig:
    """A config on a known encoder, which is named but not looked up."""
    config = PFBerxitConfig.from_backbone(ENCODERS[encoder], **knobs)
    return PFBerxitConfig.from_dict({**config.to_dict(), "base_model_name_or_path": encoder})


def as_json(config: PFBerxitConfig) -> str:
    """The file's text: every knob, in alphabetical order."""
    values = config.to_dict()
    stated = sorted({*CHECKS, "auto_map", "model_type", "pad_token_id"} - {"problem_type"})
    return json.dumps({name: values[name] for name in stated}, indent=2) + "\n"


if __name__ == "__main__":
    for name, config in presets().items():
        path = FOLDER / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_json(config), encoding="utf-8")
