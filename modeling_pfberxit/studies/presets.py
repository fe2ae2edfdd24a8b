"""The files of `configuration/`: ready-made configs, written by `python -m modeling_pfberxit.studies.presets`.

* `<encoder>-<sub-learner>.json`: PF-BERxiT as the paper lays it out, one for each sub-learning module;
* `systems/<system>.json`: every published system on ALBERT-base (ElasticBERT on its own encoder);
* `recipes/<name>.json`: a task, an encoder and a training, which `pfberxit train --recipe` takes.

`PFBerxitConfig.from_pretrained(path)` reads the first two, `PFBerxitForSequenceClassification.from_backbone(config)`
fetches the encoder. Its commit is left open and pinned when it is fetched.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AlbertConfig, BertConfig, DebertaV2Config, PreTrainedConfig

from ..evaluation.tables import table
from ..model.adapters import SUBLEARNERS
from ..model.configuration_pfberxit import CHECKS, PFBerxitConfig
from ..model.criteria import CRITERIA
from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.exit_policy import FIELDS, ExitPolicy
from ..model.systems import SYSTEMS, TRAINED
from ..training.recipes import RECIPES
from ..training.recipes import as_json as recipe_json

FOLDER = Path(__file__).parents[2] / "configuration"
RULES_PAGE = FOLDER.parent / "docs" / "rules.md"
ALBERT_BASE = AlbertConfig(
    hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12, vocab_size=30000,
    bos_token_id=0, eos_token_id=3,
)  # fmt: skip
DEBERTA_V3_BASE = DebertaV2Config(
    vocab_size=128100, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
    pos_att_type=["p2c", "c2p"], position_biased_input=False,
)  # fmt: skip
ENCODERS: dict[str, PreTrainedConfig] = {
    "albert/albert-base-v2": ALBERT_BASE,
    "google-bert/bert-base-uncased": BertConfig(),
    "fnlp/elasticbert-base": BertConfig(),
    "microsoft/deberta-v3-base": DEBERTA_V3_BASE,
}
HEAD = """# Ready-made configurations

Written by `python -m modeling_pfberxit.studies.presets`. `PFBerxitConfig.from_pretrained(file)` reads one,
`PFBerxitForSequenceClassification.from_backbone(config)` fetches its encoder.

`albert-base-v2-*.json` and `bert-base-uncased-*.json` are PF-BERxiT as the paper lays it out, one for each
sub-learning module; `deberta-v3-base-mlp.json` has the library's defaults. `systems/` has the published systems, here
for ALBERT-base; for any other encoder `PFBerxitConfig.for_system(name, backbone)` makes them. Where all weights are
trained there are no adapters, and linear exits read the encoder's own pooler on the first token, unless the table says
otherwise. Numbers that depend on the encoder's depth are given for twelve layers.

`recipes/` has values for fine-tuning on a task: `pfberxit train nyu-mll/glue --recipe mrpc --output runs/mrpc`.
"""
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
    made["deberta-v3-base-mlp"] = preset("microsoft/deberta-v3-base")
    for system in SYSTEMS:
        encoder = "fnlp/elasticbert-base" if system == "elasticbert" else "albert/albert-base-v2"
        made[f"systems/{system}"] = preset(encoder, system=system)
    return made


def preset(encoder: str, **knobs: Any) -> PFBerxitConfig:
    """A config on a known encoder, which is named but not looked up."""
    config = PFBerxitConfig.from_backbone(ENCODERS[encoder], **knobs)
    return PFBerxitConfig.from_dict({**config.to_dict(), "base_model_name_or_path": encoder, "adapter_only": None})


def as_json(config: PFBerxitConfig) -> str:
    """The file's text: every knob, in alphabetical order, without what the data decide."""
    values = config.to_dict()
    stated = sorted({*CHECKS, "auto_map", "model_type", "pad_token_id"} - {"problem_type", "num_labels", "id2label"})
    return json.dumps({name: values[name] for name in stated}, indent=2) + "\n"


def readme() -> str:
    """`configuration/README.md`: what every system is made of, and which of it is this library's reading."""
    rows = []
    for name, system in SYSTEMS.items():
        knobs = system.knobs(12)
        trained = "all weights" if knobs.pop("train_backbone", False) else "adapters or prompts, and exits"
        if "train_backbone" in system.knobs(12):
            knobs = {field: value for field, value in knobs.items() if (field, value) not in TRAINED.items()}
        values = ", ".join(f"`{field}={json.dumps(value)}`" for field, value in knobs.items())
        link = f"[`{name}`](systems/{name}.json)<br>{system.source}"
        rows.append([link, trained, values or "nothing", system.reading])
    titles = ["system", "what is trained", "beside the defaults", "our reading"]
    return f"{HEAD}\n{table(titles, rows, align='llll')}\n"


def rules_table() -> str:
    """The table of `docs/rules.md`: when a row leaves by each rule, which fields it reads, and what it can judge."""
    rows = []
    for name, rule in CRITERIA.items():
        default = " (default)" if name == ExitPolicy.criterion else ""
        source = f" ({rule.source})" if rule.source else ""
        read = [FIELDS[field].symbol or f"`exit_{field}`" for field in rule.reads(ExitPolicy(name))]
        if not rule.needs_threshold(SINGLE_LABEL):
            read = ["τ for values" if each == "τ" else each for each in read]
        read += [f"`{rule.needs_evidence}`"] if rule.needs_evidence else []
        judged = "labels" if MULTI_LABEL in rule.problem_types else "one label"
        judged += ", values" * (REGRESSION in rule.problem_types)
        reads = ", ".join(each for each in read if each != "`exit_min_layer`")
        rows.append([f"`{name}`{default}", f"{rule.when}{source}", reads, judged])
    return table(["`exit_criterion`", "a row leaves when", "reads", "judges"], rows, align="llll") + "\n"


def rules_page(page: str) -> str:
    """`docs/rules.md` with its table as the registry has it now."""
    start = page.index("| `exit_criterion` |")
    return page[:start] + rules_table() + page[page.index("\n\n", start) + 1 :]


def files() -> dict[Path, str]:
    """What belongs into `configuration/`, by its path there."""
    return {
        Path("README.md"): readme(),
        **{Path(f"{name}.json"): as_json(config) for name, config in presets().items()},
        **{Path(f"recipes/{name}.json"): recipe_json(recipe) for name, recipe in RECIPES.items()},
    }


if __name__ == "__main__":
    for path, text in files().items():
        (FOLDER / path).parent.mkdir(exist_ok=True)
        (FOLDER / path).write_text(text, encoding="utf-8")
    RULES_PAGE.write_text(rules_page(RULES_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
