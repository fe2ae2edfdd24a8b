"""What a saved model carries along is all that it takes to load, use, train and pass it on, without the package."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import enliven, save_backbone, tiny_batch, tiny_model
from transformers import TrainingArguments
from transformers.dynamic_module_utils import get_relative_imports

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.model import modeling_pfberxit

PACKAGE = Path(modeling_pfberxit.__file__).parent
CODE = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}  # the room `model` is what travels
MAY_IMPORT = {"torch", "transformers", "huggingface_hub", "safetensors", *sys.stdlib_module_names}
VARIANTS = {
    "plain": ("bert", {}),
    "DeBERTa": ("deberta-v2", {}),
    "conv beside attention": (
        "albert",
        {"adapter_sublearner": "conv", "adapter_placement": "attention", "exit_pooler": "backbone"},
    ),
    "self-attention on both": (
        "albert-groups",
        {
            "adapter_sublearner": "self_attention",
            "adapter_placement": "both",
            "exit_layers": [2, 5, 9],
            "use_lte": True,
            "lte_shared": False,
        },
    ),
    "identity in sequence": (
        "roberta",
        {
            "adapter_sublearner": "identity",
            "adapter_placement": "sequential",
            "adapter_layer_norm": "out",
            "exit_pooler": "own",
            "exit_pooling": "cls",
        },
    ),
    "no adapters": ("distilbert", {"adapter_placement": "none", "exit_shared": True, "exit_pooler": "own"}),
    "point-wise conv": (
        "bert",
        {
            "adapter_sublearner": "conv",
            "adapter_conv_kernel": 1,
            "exit_pooler": "backbone",
            "train_pooler": True,
            "adapter_layer_norm": "none",
            "adapter_activation": "gelu",
        },
    ),
    "trained encoder": ("electra", {"train_backbone": True, "exit_pooling": "cls"}),
    "norms in front, exits at global layers": ("modernbert", {"exit_layers": "global", "adapter_placement": "both"}),
    "bias by distance": ("mpnet", {"train_backbone": True, "exit_pooling": "cls"}),
    "tokens that leave": ("distilbert", {"train_backbone": True, "adapter_placement": "none", "token_exits": True}),
    "prompts half-way": (
        "xlm-roberta",
        {
            "adapter_placement": "none",
            "prompt_generator": "mppg",
            "prompt_layer": 2,
            "prompt_length": 4,
            "prompt_dim": 8,
        },
    ),
}
IN_A_FRESH_PROCESS = """
import json
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

def difference(model, wanted, policy):
    batch = {name: wanted[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        full, early = model(**batch), model(**batch, exit_policy=policy)
    assert torch.equal(full.exit_layer, torch.full_like(full.exit_layer, len(model.depths)))
    return {
        "logits": (full.logits - wanted["logits"]).abs().max().item(),
        "exit_logits": (full.exit_logits - wanted["exit_logits"]).abs().max().item(),
        "early logits": (early.logits - wanted["early_logits"]).abs().max().item(),
        "early exit_layer": (early.exit_layer - wanted["early_exit_layer"]).abs().max().item(),
    }

def features_differ(model, wanted):
    assert type(model).__name__ == "PFBerxitModel"
    with torch.no_grad():
        output = model(input_ids=wanted["input_ids"], attention_mask=wanted["attention_mask"])
    return {"states": (output.last_hidden_state - wanted["states"]).abs().max().item()}

def loaded(auto_class, folder):
    model = auto_class.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    return model

def train_a_step(model, wanted):
    batch = {name: wanted[name] for name in ("input_ids", "attention_mask")}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    model.train()(**batch, labels=torch.arange(len(wanted["input_ids"])) % 3).loss.backward()
    optimizer.step()
    model.eval()
    return sorted(name for name, value in model.state_dict().items() if not torch.equal(value, before[name]))

results = {}
for name, (folder, policy) in json.loads(sys.argv[2]).items():
    wanted = load_file(f"{folder}-wanted.safetensors")
    result = results[name] = {"AutoModel": features_differ(loaded(AutoModel, folder), wanted)}
    model = loaded(AutoModelForSequenceClassification, folder)
    result["AutoModelForSequenceClassification"] = difference(model, wanted, policy)
    model.save_pretrained(f"{folder}-fork")
    fork = loaded(AutoModelForSequenceClassification, f"{folder}-fork")
    result["fork"] = difference(fork, wanted, policy)
    result["trained"] = train_a_step(fork, wanted)
    result["after training"] = difference(fork, wanted, policy)
report(results)
"""


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def new_model(folder: Path, family: str = "bert", **knobs) -> PFBerxitForSequenceClassification:
    backbone = save_backbone(folder / family, family)
    torch.manual_seed(0)
    knobs = {"adapter_dim": 8, "adapter_num_heads": 2, "num_labels": 3, **knobs}
    model = PFBerxitForSequenceClassification.from_backbone(backbone, **knobs)
    enliven(model)
    if model.token_exits is not None:
        model.token_exits.depths.random_(0, len(model.depths) + 1)
    if model.prompts is not None:
        for parameter in model.prompts.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def telling_policy(model: PFBerxitForSequenceClassification, batch: dict[str, torch.Tensor]) -> dict:
    """A policy under which the rows leave at different depths, some of them early."""
    for threshold in torch.logspace(-8, 0, 33).tolist():
        policy = {"divergence": "js_div", "threshold": threshold, "patience": 1}
        if len(set(model(**batch, exit_policy=policy).exit_layer.tolist())) > 1:
            return policy
    raise AssertionError("all rows leave at one depth: a comparison would say little")


# ---- the files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter_only", [True, False])
def test_a_saved_model_is_these_files(tmp_path, adapter_only):
    model = new_model(tmp_path)
    model.config.adapter_only = adapter_only
    model.save_pretrained(tmp_path / "saved")
    assert written(tmp_path / "saved") == CODE | {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", sorted(CODE))
def test_a_saved_file_is_the_packages_own(tmp_path_factory, name):
    saved = tmp_path_factory.getbasetemp() / "saved-code"
    if not saved.exists():
        model = tiny_model(num_labels=3)
        model.config.adapter_only = False
        model.save_pretrained(saved)
    assert (saved / name).read_bytes() == (PACKAGE / name).read_bytes()


@pytest.mark.parametrize("saved", ["model", "config"])
def test_saving_over_another_version_s_code_leaves_one_version_and_what_is_none_of_it(tmp_path, saved):
    model = tiny_model(num_labels=3)
    model.config.adapter_only = False
    model.save_pretrained(tmp_path)
    for name in ("modeling_pfberxit", "loop"):
        (tmp_path / f"{name}.py").write_text("from .former import this\n")
    for name in ("former", "mine"):
        (tmp_path / f"{name}.py").write_text("this = 1\n")
    (model if saved == "model" else model.config).save_pretrained(tmp_path)
    assert written(tmp_path) == CODE | {"config.json", "model.safetensors", "mine.py"}
    for name in CODE:
        assert (tmp_path / name).read_bytes() == (PACKAGE / name).read_bytes()


def test_peft_never_takes_a_checkpoint_for_its_own(tmp_path):
    """With peft installed, a repository with an adapter_config.json is loaded as its base model, our code ignored."""
    from transformers import Trainer

    model = new_model(tmp_path)
    model.save_pretrained(tmp_path / "adapters")
    arguments = TrainingArguments(tmp_path / "trainer", use_cpu=True)
    Trainer(model, arguments).save_model()
    model.config.adapter_only = False
    model.save_pretrained(tmp_path / "whole")
    names = written(tmp_path)
    assert {"adapters/config.json", "trainer/config.json", "whole/config.json"} <= names
    assert not [name for name in names if Path(name).name.startswith("adapter_config")]


# ---- the imports ----------------------------------------------------------------------------------------------------


def imports(code: str) -> tuple[set[str], set[str]]:
    """Top-level packages and siblings that a file imports, anywhere in it."""
    packages, siblings = set(), set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` has no module: an empty name, which is no sibling.
            name = node.module or ""
            (siblings if node.level else packages).add(name if node.level else name.split(".")[0])
    return packages, siblings


@pytest.mark.parametrize("name", sorted(CODE))
def test_transformers_finds_every_relative_import_and_takes_nothing_else_for_one(name):
    siblings = imports((PACKAGE / name).read_text(encoding="utf-8"))[1]
    assert set(get_relative_imports(PACKAGE / name)) == siblings
    assert {f"{sibling}.py" for sibling in siblings} <= CODE - {name}


@pytest.mark.parametrize("name", sorted(CODE))
def test_a_saved_file_imports_only_what_every_user_has(name):
    assert imports((PACKAGE / name).read_text(encoding="utf-8"))[0] <= MAY_IMPORT


@pytest.mark.parametrize(
    "line", ['"""\nfrom .nowhere import x\n"""', "from . import adapters", "from .layers.adapters import Adapter"]
)
def test_the_checks_above_notice_what_transformers_cannot_follow(tmp_path, line):
    (tmp_path / "file.py").write_text(line + "\n")
    found, siblings = set(get_relative_imports(tmp_path / "file.py")), imports(line)[1]
    assert found != siblings or not {f"{sibling}.py" for sibling in siblings} <= CODE


@pytest.mark.parametrize("line", ["import numpy", "def f():\n    from modeling_pfberxit.training import x"])
def test_the_checks_above_notice_foreign_packages(line):
    assert not imports(line)[0] <= MAY_IMPORT


@pytest.mark.parametrize("name", sorted(CODE))
def test_a_saved_file_can_be_read_in_one_sitting(name):
    assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) <= 350


# ---- a fresh process, without the package ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strangers_results(tmp_path_factory, without_package):
    """What one process that knows nothing of the package makes of every variant."""
    root, cases = tmp_path_factory.mktemp("remote"), {}
    for number, (name, (family, knobs)) in enumerate(VARIANTS.items()):
        model, batch = new_model(root / f"encoder{number}", family, **knobs), tiny_batch(7, seed=3)
        policy = telling_policy(model, batch)
        with torch.no_grad():
            full, early = model(**batch, output_hidden_states=True), model(**batch, exit_policy=policy)
        folder = str(root / f"variant{number}")
        model.save_pretrained(folder)
        wanted = {"logits": full.logits, "exit_logits": full.exit_logits, "early_logits": early.logits}
        wanted["states"] = full.hidden_states[-1].contiguous()
        save_file({**wanted, "early_exit_layer": early.exit_layer, **batch}, f"{folder}-wanted.safetensors")
        cases[name] = (folder, policy)
    results = without_package(IN_A_FRESH_PROCESS, json.dumps(cases))
    return {name: {**results[name], "folder": folder} for name, (folder, _) in cases.items()}


@pytest.mark.parametrize("loader", ["AutoModel", "AutoModelForSequenceClassification", "fork"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_the_package_a_saved_model_predicts_the_same(strangers_results, variant, loader):
    assert max(strangers_results[variant][loader].values()) <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_the_package_a_saved_model_can_be_trained(strangers_results, variant):
    result, knobs = strangers_results[variant], VARIANTS[variant][1]
    assert max(result["after training"].values()) > 1e-4
    parts = ("adapter", "exits.", "backbone.", "prompts.", "token_exits.")
    kinds = {kind for kind in parts if any(kind in name for name in result["trained"])}
    adapters = {"adapter"} if knobs.get("adapter_placement") != "none" else set()
    backbone = {"backbone."} if knobs.get("train_backbone") else set()
    prompts = {"prompts."} if "prompt_generator" in knobs else set()
    assert kinds == {"exits."} | adapters | backbone | prompts


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_the_package_a_saved_model_is_passed_on_whole(strangers_results, variant):
    folder = Path(strangers_results[variant]["folder"])
    assert written(Path(f"{folder}-fork")) == CODE | {"config.json", "model.safetensors"}
    first, fork = (json.loads((where / "config.json").read_text()) for where in (folder, Path(f"{folder}-fork")))
    assert fork == first
