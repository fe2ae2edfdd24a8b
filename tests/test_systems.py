"""Every published system is a choice of values: it runs, is saved, and is used and trained on without the package."""

import ast
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LAYERS, enliven, save_backbone, tiny_batch, tiny_config
from transformers import AlbertConfig, AlbertModel

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model import modeling_pfberxit
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.strategies import TrainingProgress
from modeling_pfberxit.model.systems import SYSTEMS

PACKAGE = Path(modeling_pfberxit.__file__).parent
NAMES = [
    "pf-berxit", "f-pabee", "pabee", "berxit", "branchynet", "deebert", "shallow-deep", "elbert", "badge", "de3-bert",
    "elasticbert", "hashee", "late-prompt-tuning", "fastbert", "pcee-bert", "appointed",
]  # fmt: skip
FROZEN = ["pf-berxit", "badge", "late-prompt-tuning"]
# What the papers say, in this library's words: criterion, strategy, weights of the losses, pooler of the exits.
PAPERS = {
    "pf-berxit": ("divergence_v1", "joint", "depth", "none", {"adapter_placement": "ffn"}),
    "f-pabee": ("divergence_v1", "joint", "depth", "backbone", {"exit_divergence": "jskd"}),
    "pabee": ("patience", "joint", "depth", "backbone", {}),
    "berxit": ("lte", "alternating", "uniform", "backbone", {"use_lte": True, "lte_shared": True}),
    "branchynet": ("entropy", "joint", "depth", "backbone", {}),
    "deebert": ("entropy", "two_stage", "uniform", "own", {"distillation": 0.0}),
    "shallow-deep": ("max_prob", "joint", "rising", "backbone", {}),
    "elbert": ("window", "joint", "learned", "backbone", {"exit_shared": True, "exit_normalize": True}),
    "badge": ("dge", "joint", "depth", "none", {"adapter_placement": "bypass"}),
    "de3-bert": ("distance", "joint", "depth", "backbone", {"use_prototypes": True}),
    "elasticbert": ("entropy", "joint", "uniform", "own", {"gradient_equilibrium": True}),
    "hashee": (None, "joint", "depth", "backbone", {"token_exits": True}),
    "late-prompt-tuning": (None, "joint", "depth", "none", {"prompt_generator": "npg"}),
    "fastbert": (
        "entropy", "two_stage", "uniform", "none",
        {
            "adapter_placement": "bypass", "adapter_sublearner": "self_attention", "exit_normalize": True,
            "distillation": 1.0, "distillation_divergence": "kl_div",
        },
    ),
    "pcee-bert": ("pcee", "joint", "depth", "backbone", {"exit_normalize": True}),
    "appointed": ("appointed", "joint", "depth", "backbone", {}),
}  # fmt: skip


# ---- the table ------------------------------------------------------------------------------------------------------


def test_these_are_the_systems():
    assert sorted(SYSTEMS) == sorted(NAMES)
    assert all(system.source for system in SYSTEMS.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_system_has_the_values_of_its_paper(name):
    config = PFBerxitConfig.for_system(name, tiny_config())
    criterion, strategy, weights, pooler, others = PAPERS[name]
    assert config.exit_criterion == criterion
    assert (config.training_strategy, config.exit_weights, config.exit_pooler) == (strategy, weights, pooler)
    assert {field: getattr(config, field) for field in others} == others
    assert (config.system, config.train_backbone) == (name, name not in FROZEN)
    if config.train_backbone and name != "fastbert":
        assert (config.adapter_placement, config.exit_pooling) == ("none", "cls")


def test_values_follow_the_number_of_layers():
    large = tiny_config("bert", num_hidden_layers=24)
    assert PFBerxitConfig.for_system("elbert", large).exit_window == 8
    assert PFBerxitConfig.for_system("late-prompt-tuning", large).prompt_layer == 12
    assert PFBerxitConfig.for_system("appointed", large).exit_appointed_layer == 12
    assert PFBerxitConfig.for_system("hashee", large).exit_layers == [24]
    groups = tiny_config("albert-groups")  # twelve executed layers
    assert PFBerxitConfig.for_system("late-prompt-tuning", groups).prompt_layer == 6
    assert PFBerxitConfig.for_system("hashee", groups).exit_layers == [12]


@pytest.mark.parametrize("name", ["badge", "de3-bert"])
def test_a_system_whose_formulas_are_not_public_says_so(name):
    assert re.search(r"\bno formula is public\b|\bnot public\b", SYSTEMS[name].reading, re.IGNORECASE)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_config_of_a_system_however_it_is_asked_for(name):
    config = PFBerxitConfig.for_system(name, tiny_config())
    assert PFBerxitConfig.from_backbone(tiny_config(), system=name).to_dict() == config.to_dict()
    model = PFBerxitForSequenceClassification.from_backbone(tiny_config(), system=name)
    made = model.config.to_dict()
    assert {field: made[field] for field in config.to_dict() if field != "dtype"} == {
        field: value for field, value in config.to_dict().items() if field != "dtype"
    }
    assert PFBerxitConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_knobs_change_what_a_system_says_and_nothing_else():
    said = PFBerxitConfig.for_system("deebert", tiny_config()).to_dict()
    changes = {"train_backbone": False, "training_strategy": "joint", "exit_layers": [2, 4], "adapter_placement": "ffn"}
    for found in (
        PFBerxitConfig.for_system("deebert", tiny_config(), **changes),
        PFBerxitConfig.from_backbone(tiny_config(), system="deebert", **changes),
    ):
        different = {field for field, value in found.to_dict().items() if value != said[field]}
        assert different == {*changes}
        assert {field: getattr(found, field) for field in changes} == changes
        assert found.system == "deebert"


def test_a_config_made_before_can_still_become_a_system():
    config = PFBerxitConfig.from_backbone(tiny_config())
    model = PFBerxitForSequenceClassification.from_backbone(config, system="pabee")
    assert (model.config.system, model.config.exit_criterion, model.config.train_backbone) == (
        "pabee",
        "patience",
        True,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda name: PFBerxitConfig.for_system(name, tiny_config()),
        lambda name: PFBerxitConfig.from_backbone(tiny_config(), system=name),
        lambda name: PFBerxitForSequenceClassification.from_backbone(tiny_config(), system=name),
        lambda name: PFBerxitForSequenceClassification.from_backbone(
            PFBerxitConfig.from_backbone(tiny_config()), system=name
        ),
    ],
    ids=["for_system", "from_backbone", "model", "model from a config"],
)
@pytest.mark.parametrize("name", ["leebert", "PABEE", ""])
def test_an_unknown_system_is_refused_with_the_list_of_them(make, name):
    with pytest.raises(ValueError, match=f"system='{name}'") as caught:
        make(name)
    assert all(known in str(caught.value) for known in NAMES)
    assert "\n" not in str(caught.value)


# ---- Table 2 of the PF-BERxiT paper ---------------------------------------------------------------------------------


def parameters(system: str, **knobs) -> int:
    config = PFBerxitConfig.for_system(system, albert_base(), num_labels=2, **knobs)
    with torch.device("meta"):
        return PFBerxitForSequenceClassification(config).num_parameters()


def albert_base() -> AlbertConfig:
    return AlbertConfig(
        vocab_size=30000, embedding_size=128, hidden_size=768, num_hidden_layers=12, num_hidden_groups=1,
        num_attention_heads=12, intermediate_size=3072, max_position_embeddings=512, type_vocab_size=2,
    )  # fmt: skip


def test_parameter_counts_are_table_2s():
    with torch.device("meta"):
        assert AlbertModel(albert_base()).num_parameters() == 11_683_584
    assert parameters("pabee") == parameters("branchynet") == 11_702_040 == 11_683_584 + 12 * (768 * 2 + 2)
    assert parameters("berxit", lte_shared=False) == 11_711_268 == 11_702_040 + 12 * (768 + 1)
    assert parameters("berxit") == 11_702_040 + 768 + 1, "as published: one head for all exits"


def test_other_systems_count_what_their_papers_add():
    assert parameters("f-pabee") == parameters("pcee-bert") == parameters("shallow-deep") == 11_702_040
    own = 12 * (768 * 768 + 768)  # a pooler at every exit in place of the encoder's
    assert parameters("deebert") == parameters("elasticbert") == 11_702_040 + own - 590_592
    assert parameters("elbert") == 11_683_584 + 768 * 2 + 2 + 11, "one exit for all, and the weights of their losses"
    assert parameters("hashee") == 11_683_584 + 768 * 2 + 2
    assert parameters("de3-bert") == 11_702_040 + 12 * 2 * 768


# ---- every system as a model ----------------------------------------------------------------------------------------

BATCH = tiny_batch(24, longest=12, seed=3)


def build(name: str, folder: Path) -> PFBerxitForSequenceClassification:
    """A lively model of a system on a pretrained encoder."""
    backbone = save_backbone(folder / "encoder", seed=1, initializer_range=0.2)
    torch.manual_seed(0)
    model = PFBerxitForSequenceClassification.from_backbone(backbone, system=name, num_labels=3)
    enliven(model)
    if model.prompts is not None:
        for parameter in model.prompts.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    if model.token_exits is not None:
        model.token_exits.depths.random_(0, LAYERS + 1)
    return model


@torch.no_grad()
def telling_threshold(model: PFBerxitForSequenceClassification) -> float | None:
    """One under which rows leave at many layers, none of them by a hair; None where the criterion needs none."""
    criterion = model.config.exit_criterion
    if criterion is None or not CRITERIA[criterion].needs_threshold("single_label_classification"):
        return None

    def layers(tau: float) -> list[int]:
        return model(**BATCH, exit_policy={"threshold": tau}).exit_layer.tolist()

    spread = {tau: len(set(layers(tau))) for tau in torch.logspace(-4, 2, 37).tolist()}
    for tau in sorted(spread, key=spread.get, reverse=True):
        if layers(tau * 0.999) == layers(tau) == layers(tau * 1.001):
            assert spread[tau] > 1, "a comparison would say little"
            return tau
    raise AssertionError("every threshold is a tie")


@cache
def built(name: str, root: Path) -> tuple[PFBerxitForSequenceClassification, Path]:
    """A model of the system with a threshold of its own, and the folder it is saved in."""
    model = build(name, root / name)
    model.config.exit_threshold = telling_threshold(model)
    model.save_pretrained(root / name / "saved")
    return model, root / name / "saved"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    yield tmp_path_factory.mktemp("systems")
    built.cache_clear()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_row_has_the_same_answer_alone_and_among_others(root, name):
    model, _ = built(name, root)
    together = model(**BATCH)
    if model.config.exit_criterion not in (None, "appointed"):
        assert len(set(together.exit_layer.tolist())) > 1
    else:
        assert set(together.exit_layer.tolist()) == {model.config.exit_appointed_layer or LAYERS}
    for row, length in enumerate(BATCH["attention_mask"].sum(1).tolist()):
        alone = model(input_ids=BATCH["input_ids"][row : row + 1, :length])
        assert alone.exit_layer.item() == together.exit_layer[row].item()
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_holds_the_encoder_exactly_where_it_is_trained(root, name):
    model, folder = built(name, root)
    kept = load_file(folder / "model.safetensors")
    encoder = {key for key in kept if key.startswith("backbone.")}
    expected = set() if name in FROZEN else {key for key in model.state_dict() if key.startswith("backbone.")}
    assert encoder == expected
    assert {key for key in model.state_dict() if not key.startswith("backbone.")} == set(kept) - encoder
    written = json.loads((folder / "config.json").read_text())
    assert (written["system"], written["adapter_only"]) == (name, name in FROZEN)
    assert all(parameter.requires_grad == (name not in FROZEN) for parameter in model.backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_loaded_model_answers_the_same(root, name):
    model, folder = built(name, root)
    loaded, expected = PFBerxitForSequenceClassification.from_pretrained(folder), model(**BATCH)
    assert torch.equal(loaded(**BATCH).exit_layer, expected.exit_layer)
    torch.testing.assert_close(loaded(**BATCH).logits, expected.logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_a_cycle_teaches_something(tmp_path, name):
    model = build(name, tmp_path).train()
    moved = set()
    for stage, step in ((1, 0), (1, 1), (2, 0)):
        model.config.training_stage, model.training_progress = stage, TrainingProgress(step, 4)
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        model(**BATCH, labels=torch.arange(24) % 3).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        here = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
        assert here
        moved |= here
    assert moved == {key for key, parameter in model.named_parameters() if parameter.requires_grad}


IN_A_FRESH_PROCESS = """
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

def train_a_step(model, batch):
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model.training_progress = sys.modules[type(model).__module__].TrainingProgress(1, 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    loss = model.train()(**batch, labels=torch.arange(len(batch["input_ids"])) % 3).loss
    loss.backward()
    optimizer.step()
    model.eval()
    moved = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    return loss.item(), sorted(moved)

results = {}
for name, folder in json.loads(sys.argv[2]).items():
    wanted = load_file(f"{folder}-wanted.safetensors")
    batch = {key: wanted[key] for key in ("input_ids", "attention_mask")}
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.no_grad():
        found, alone = model(**batch), model(**{key: values[:1] for key, values in batch.items()})
    loss, moved = train_a_step(model, batch)
    with torch.no_grad():
        after = model(**batch, exit_policy={"criterion": None})
        before = wanted["full"]
    results[name] = {
        "system": model.config.system,
        "logits": (found.logits - wanted["logits"]).abs().max().item(),
        "exit_layer": torch.equal(found.exit_layer, wanted["exit_layer"]),
        "alone": (alone.logits - wanted["logits"][:1]).abs().max().item(),
        "loss": loss,
        "moved": moved,
        "changed": (after.logits - before).abs().max().item(),
    }
report(results)
"""


@pytest.fixture(scope="module")
def strangers_results(root, without_package: Callable) -> dict:
    """What one process that knows nothing of the package makes of all systems."""
    folders = {}
    for name in NAMES:
        model, folder = built(name, root)
        with torch.no_grad():
            output, full = model(**BATCH), model(**BATCH, exit_policy={"criterion": None})
        wanted = {"logits": output.logits, "exit_layer": output.exit_layer, "full": full.logits, **BATCH}
        save_file(wanted, f"{folder}-wanted.safetensors")
        folders[name] = str(folder)
    return without_package(IN_A_FRESH_PROCESS, json.dumps(folders))


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_a_system_answers_the_same(strangers_results, name):
    result = strangers_results[name]
    assert result["system"] == name
    assert result["exit_layer"]
    assert result["logits"] <= 1e-5
    assert result["alone"] <= 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_a_system_can_be_trained_on(strangers_results, name):
    result = strangers_results[name]
    assert 0 < result["loss"] < 100
    assert result["changed"] > 1e-4
    parts = {
        "pf-berxit": {"depths", "exits"}, "badge": {"exits"}, "late-prompt-tuning": {"prompts", "exits"},
    }  # fmt: skip
    assert set(result["moved"]) == parts.get(name, {"backbone", "exits"})


# ---- other encoders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["albert", "roberta", "distilbert", "electra"])
def test_every_system_runs_on_other_encoders(family):
    batch = tiny_batch(3)
    for name in NAMES:
        own = {"exit_pooler": "own"} if family in ("distilbert", "electra") else {}
        model = PFBerxitForSequenceClassification.from_backbone(tiny_config(family), system=name, **own)
        assert model(**batch).logits.shape == (3, 2), name


@pytest.mark.parametrize("family", ["distilbert", "electra"])
def test_a_system_that_wants_a_pooler_says_so_where_there_is_none(family):
    for name in NAMES:
        if PAPERS[name][3] == "backbone":
            with pytest.raises(ValueError, match=f"exit_pooler='backbone'.*'own': {family} has no pooler"):
                PFBerxitForSequenceClassification.from_backbone(tiny_config(family), system=name)


# ---- the code does not know them ------------------------------------------------------------------------------------


def code_without_prose(source: str) -> str:
    """Python code in lower case, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).lower()


def systems_in(code: str) -> list[str]:
    """Names of systems in it, written with or without hyphens; the package's own name is none."""
    code = code.replace("pfberxit", "")
    spellings = {name: {name, name.replace("-", "_"), name.replace("-", "")} for name in NAMES}
    return [name for name, written in spellings.items() if any(spelling in code for spelling in written)]


@pytest.mark.parametrize("file", ["modeling_pfberxit.py", "loop.py", "rows.py", "strategies.py"])
def test_no_system_is_named_in_the_code_that_runs_them_all(file):
    assert systems_in(code_without_prose((PACKAGE / file).read_text(encoding="utf-8"))) == []


def test_the_check_above_notices_a_name():
    code = 'class PFBerxitX:\n    """PABEE."""\n\n    def f(self):  # berxit\n        return "{}"\n'
    assert systems_in(code_without_prose(code)) == []
    for name in NAMES:
        assert name in systems_in(code_without_prose(code.replace("{}", name.upper())))
    assert systems_in(code_without_prose(code.replace("f(self)", "de3_bert_step(self)"))) == ["de3-bert"]
