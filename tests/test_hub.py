"""The way to the Hub and back: push, load, pin, fork, offline, pipeline, Trainer, over HTTP."""

import json
import shutil

import pytest
import torch
from hub_server import USER, read_folder
from safetensors.torch import save_file
from tiny import enliven, save_backbone, tiny_batch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_pfberxit import PFBerxitForSequenceClassification

LOADERS = [PFBerxitForSequenceClassification, AutoModelForSequenceClassification]
TEXTS = ["w1 w2 w3", "w40 w50 w60 w70 w80"]
IN_A_FRESH_PROCESS = """
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

repo, wanted = sys.argv[2], load_file(sys.argv[3])
batch = {name: wanted[name] for name in ("input_ids", "attention_mask")}
results = {}
for auto_class in (AutoModel, AutoModelForSequenceClassification):
    model = auto_class.from_pretrained(repo, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    wanted_part, part = (wanted["states"], 0) if auto_class is AutoModel else (wanted["logits"], "logits")
    results[auto_class.__name__] = (model(**batch)[part] - wanted_part).abs().max().item()
classify = pipeline("text-classification", model=repo, trust_remote_code=True)
results["pipeline"] = classify(sys.argv[5:], top_k=None)
if sys.argv[4]:
    model.push_to_hub(sys.argv[4])
report(results)
"""


@pytest.fixture
def repo(request) -> str:
    """A repository name that no other test uses."""
    return "acme/" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[-90:].strip("-")


def new_model(backbone: str, seed: int = 0, **knobs) -> PFBerxitForSequenceClassification:
    torch.manual_seed(seed)
    knobs = {"adapter_dim": 8, "num_labels": 3, **knobs}
    model = PFBerxitForSequenceClassification.from_backbone(backbone, **knobs)
    enliven(model)
    return model.eval()


def load(repo: str, **options) -> PFBerxitForSequenceClassification:
    return PFBerxitForSequenceClassification.from_pretrained(repo, **options)


@torch.no_grad()
def predict(model) -> torch.Tensor:
    return model(**tiny_batch(4)).logits


def same(first, second) -> bool:
    return torch.equal(predict(first), predict(second))


def config_of(files: dict[str, bytes]) -> dict:
    return json.loads(files["config.json"])


@pytest.fixture
def moving_backbone(hub, repo, hub_backbone) -> str:
    """A repository with an encoder, for tests that go on committing to it."""
    hub.commit(f"{repo}-encoder", hub.files(hub_backbone))
    return f"{repo}-encoder"


# ---- there and back -------------------------------------------------------------------------------------------------


def test_push_is_one_commit_with_code_config_and_adapters(hub, hub_backbone, repo):
    new_model(hub_backbone).push_to_hub(repo)
    files = hub.files(repo)
    assert len(hub.repositories[repo].commits) == 2  # the empty one it begins with, and ours
    assert {"config.json", "model.safetensors", "modeling_pfberxit.py", "configuration_pfberxit.py"} <= set(files)
    assert "adapter_config.json" not in files
    assert len(files["model.safetensors"]) < len(hub.files(hub_backbone)["model.safetensors"]) / 5
    config = config_of(files)
    assert config["base_model_name_or_path"] == hub_backbone
    assert config["base_model_revision"] == hub.sha(hub_backbone)
    assert {"create", "preupload", "commit"} <= {request.route for request in hub.requests}
    assert all(request.route for request in hub.requests), "the test server does not know what was asked"


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pushed_model_loads_to_the_same_predictions(hub, hub_backbone, repo, loader):
    model = new_model(hub_backbone)
    model.push_to_hub(repo)
    again = loader.from_pretrained(repo, trust_remote_code=True)
    assert type(again) is PFBerxitForSequenceClassification
    assert same(again, model) and not same(again, new_model(hub_backbone, seed=1))
    assert hub.requests_for(repo)


def test_without_the_package_a_pushed_model_loads_classifies_forks_and_works_offline(
    hub, hub_backbone, repo, tmp_path, without_package
):
    model, fork = new_model(hub_backbone), f"{repo}-fork"
    model.push_to_hub(repo)
    tokenizer = AutoTokenizer.from_pretrained(hub_backbone)
    tokenizer.push_to_hub(repo)
    with torch.no_grad():
        states = model(**tiny_batch(4), output_hidden_states=True).hidden_states[-1]
    save_file({"logits": predict(model), "states": states, **tiny_batch(4)}, tmp_path / "wanted")
    wanted = pipeline("text-classification", model=model, tokenizer=tokenizer)(TEXTS, top_k=None)
    arguments, home = (IN_A_FRESH_PROCESS, repo, str(tmp_path / "wanted")), str(tmp_path / "home")

    def check(results):
        assert results["AutoModel"] <= 1e-6 and results["AutoModelForSequenceClassification"] <= 1e-6
        for row, wanted_row in zip(results["pipeline"], wanted, strict=True):
            assert {answer["label"]: answer["score"] for answer in row} == pytest.approx(
                {answer["label"]: answer["score"] for answer in wanted_row}
            )

    hub.requests.clear()
    check(without_package(*arguments, fork, *TEXTS, HF_HOME=home))
    assert hub.requests_for(repo) and hub.requests_for(hub_backbone)
    code = {path for path in hub.files(repo) if path.endswith(".py")}
    assert code and code == {path for path in hub.files(fork) if path.endswith(".py")}
    assert config_of(hub.files(fork))["base_model_revision"] == hub.sha(hub_backbone)
    assert same(load(fork), model)

    hub.requests.clear()
    check(without_package(*arguments, "", *TEXTS, HF_HOME=home, HF_HUB_OFFLINE="1"))
    assert hub.requests == []


def test_local_files_only_asks_nobody(hub, hub_backbone, repo, tmp_path):
    model = new_model(hub_backbone)
    model.push_to_hub(repo)
    with pytest.raises(OSError):
        load(repo, cache_dir=tmp_path, local_files_only=True)
    load(repo, cache_dir=tmp_path)
    hub.requests.clear()
    assert same(load(repo, cache_dir=tmp_path, local_files_only=True), model)
    assert hub.requests == []


def test_a_cache_folder_of_ones_own_is_used_for_both_repositories(hub, hub_backbone, repo, tmp_path):
    new_model(hub_backbone).push_to_hub(repo)
    load(repo, cache_dir=tmp_path)
    folders = {path.name for path in tmp_path.glob("models--*")}
    assert folders == {f"models--{name.replace('/', '--')}" for name in (repo, hub_backbone)}


def test_a_token_is_shown_to_both_repositories(hub, hub_backbone, repo, tmp_path):
    new_model(hub_backbone).push_to_hub(repo)
    hub.requests.clear()
    load(repo, token="hf_another", cache_dir=tmp_path)
    for name in (repo, hub_backbone):
        assert {request.token for request in hub.requests_for(name)} == {"hf_another"}


def test_save_pretrained_can_push_what_it_saved(hub, hub_backbone, repo, tmp_path):
    model = new_model(hub_backbone)
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id=repo)
    pushed, saved = hub.files(repo), read_folder(tmp_path)
    assert {name: pushed[name] for name in saved if name != "README.md"} == saved
    assert config_of(pushed)["weights_sha256"]
    assert same(load(repo), model)


def test_a_config_is_pushed_with_all_the_code_of_its_models(hub, hub_backbone, repo, tmp_path):
    new_model(hub_backbone).config.save_pretrained(tmp_path, push_to_hub=True, repo_id=repo)
    pushed, saved = hub.files(repo), read_folder(tmp_path)
    assert "modeling_pfberxit.py" in pushed and {name: pushed[name] for name in saved} == saved


def test_save_pretrained_names_the_repository_after_the_folder(hub, hub_backbone, repo, tmp_path):
    folder = repo.removeprefix("acme/")
    new_model(hub_backbone).save_pretrained(tmp_path / folder, push_to_hub=True)
    assert "model.safetensors" in hub.files(f"{USER}/{folder}")


# ---- pins -----------------------------------------------------------------------------------------------------------


def test_adapters_stay_with_their_encoder_while_its_main_moves_on(hub, moving_backbone, repo, tmp_path):
    model = new_model(moving_backbone)
    model.push_to_hub(repo)
    hub.commit(moving_backbone, {"model.safetensors": b"garbage", "config.json": b"{}"})
    with pytest.raises((OSError, ValueError)):
        AutoModel.from_pretrained(moving_backbone, cache_dir=tmp_path)
    assert same(load(repo, cache_dir=tmp_path), model)


def test_a_branch_of_the_encoder_is_pinned_to_its_commit(hub, hub_backbone, moving_backbone, tmp_path):
    other = read_folder(save_backbone(tmp_path / "other", seed=3))
    commit = hub.commit(moving_backbone, other, branch="v2")
    model = new_model(moving_backbone, revision="v2")
    assert model.config.base_model_revision == commit != hub.sha(moving_backbone)
    assert not same(model, new_model(moving_backbone))


@pytest.mark.parametrize("revision", ["branch", "commit"])
@pytest.mark.parametrize("loader", [PFBerxitForSequenceClassification, AutoModelForSequenceClassification])
def test_adapters_load_at_an_old_revision_and_it_stays_theirs(
    hub, hub_backbone, repo, tmp_path, monkeypatch, loader, revision
):
    old, new = new_model(hub_backbone), new_model(hub_backbone, seed=1, num_labels=2)
    old.push_to_hub(repo)
    commit = hub.sha(repo)
    hub.repositories[repo].branches["v1"] = commit
    new.push_to_hub(repo)
    asked = spy_on_backbone_loads(monkeypatch)
    wanted = "v1" if revision == "branch" else commit
    assert same(loader.from_pretrained(repo, revision=wanted, trust_remote_code=True, cache_dir=tmp_path), old)
    assert same(loader.from_pretrained(repo, trust_remote_code=True, cache_dir=tmp_path), new)
    assert [options["revision"] for options in asked if options["name"] == hub_backbone] == [hub.sha(hub_backbone)] * 2


def spy_on_backbone_loads(monkeypatch) -> list[dict]:
    """Records every `AutoModel.from_pretrained`: its name and its options."""
    asked, original = [], AutoModel.from_pretrained

    def spy(name, *args, **options):
        asked.append({"name": name, "revision": None, "trust_remote_code": None, **options})
        return original(name, *args, **options)

    monkeypatch.setattr(AutoModel, "from_pretrained", spy)
    return asked


@pytest.mark.parametrize("loader", [PFBerxitForSequenceClassification, AutoModelForSequenceClassification])
def test_trust_in_the_adapters_code_is_not_trust_in_the_encoders(hub, hub_backbone, repo, monkeypatch, loader):
    new_model(hub_backbone).push_to_hub(repo)
    asked = spy_on_backbone_loads(monkeypatch)
    loader.from_pretrained(repo, revision="main", trust_remote_code=True)
    assert [options["name"] for options in asked] == [hub_backbone]
    assert not asked[0]["trust_remote_code"] and asked[0]["revision"] == hub.sha(hub_backbone)


@pytest.mark.parametrize("model_type", ["bert", "unheard-of"])
def test_the_code_in_an_encoders_repository_never_runs(hub, hub_backbone, moving_backbone, repo, tmp_path, model_type):
    new_model(hub_backbone).push_to_hub(repo)
    marker = tmp_path / "it-ran"
    code = f"open({str(marker)!r}, 'w')\nfrom transformers import BertConfig as Config, BertModel as Model\n"
    config = config_of(hub.files(hub_backbone))
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    commit = hub.commit(moving_backbone, {"code.py": code.encode(), "config.json": json.dumps(config).encode()})
    options = {"base_model_name_or_path": moving_backbone, "base_model_revision": commit, "trust_remote_code": True}
    if model_type == "bert":
        load(repo, **options)
    else:
        with pytest.raises((OSError, ValueError), match="unheard-of.*supported backbone"):
            load(repo, **options)
    assert not marker.exists()


# ---- another place for the encoder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", LOADERS)
def test_the_encoder_may_come_from_a_folder_instead(hub, hub_backbone, local_backbone, repo, tmp_path, loader):
    model = new_model(hub_backbone)
    model.push_to_hub(repo)
    hub.requests.clear()
    again = loader.from_pretrained(
        repo, base_model_name_or_path=local_backbone, trust_remote_code=True, cache_dir=tmp_path
    )
    assert same(again, model)
    assert hub.requests_for(repo) and not hub.requests_for(hub_backbone)


def test_a_wrong_folder_instead_is_noticed(hub, hub_backbone, repo, tmp_path):
    new_model(hub_backbone).push_to_hub(repo)
    with pytest.raises(OSError, match="base_model_name_or_path.*sha256"):
        load(repo, base_model_name_or_path=save_backbone(tmp_path, seed=9))


def test_adapters_saved_on_a_folder_instead_do_not_keep_the_commit(hub, hub_backbone, local_backbone, repo, tmp_path):
    new_model(hub_backbone).push_to_hub(repo)
    load(repo, base_model_name_or_path=local_backbone).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["base_model_name_or_path"] == local_backbone
    assert config["base_model_revision"] is None


def test_a_mirror_serves_as_well(hub, hub_backbone, moving_backbone, repo):
    """Another repository with the same weights, under a commit of its own."""
    model = new_model(hub_backbone)
    model.push_to_hub(repo)
    hub.commit(moving_backbone, {"README.md": b"a mirror"})
    assert hub.sha(moving_backbone) != hub.sha(hub_backbone)
    assert same(load(repo, base_model_name_or_path=moving_backbone), model)


@pytest.mark.parametrize("revision", [None, "main", "commit"])
def test_a_repository_with_other_weights_is_noticed(hub, hub_backbone, moving_backbone, repo, tmp_path, revision):
    new_model(hub_backbone).push_to_hub(repo)
    commit = hub.commit(moving_backbone, read_folder(save_backbone(tmp_path, seed=9)))
    options = {"base_model_revision": commit if revision == "commit" else revision}
    with pytest.raises(OSError, match="base_model_name_or_path.*sha256"):
        load(repo, base_model_name_or_path=moving_backbone, **options)


def test_a_missing_repository_says_what_to_do(hub, hub_backbone, moving_backbone, repo, tmp_path):
    new_model(moving_backbone).push_to_hub(repo)
    del hub.repositories[moving_backbone]
    with pytest.raises(OSError, match=f"base_model_name_or_path='{moving_backbone}'") as error:
        load(repo, cache_dir=tmp_path)
    assert "\n" not in str(error.value)


# ---- warnings and refusals ------------------------------------------------------------------------------------------


def test_pushing_adapters_of_a_local_encoder_warns(hub, local_backbone, hub_backbone, repo, caplog):
    new_model(hub_backbone).push_to_hub(f"{repo}-fine")
    assert "base_model_name_or_path" not in caplog.text
    new_model(local_backbone).push_to_hub(repo)
    assert "base_model_name_or_path" in caplog.text and local_backbone in caplog.text


def test_pushing_a_whole_model_on_a_local_encoder_does_not_warn(hub, local_backbone, repo, caplog):
    model = new_model(local_backbone, adapter_only=False)
    model.push_to_hub(repo)
    assert "base_model_name_or_path" not in caplog.text
    assert same(load(repo), model)


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained"])
def test_what_cannot_be_saved_leaves_no_repository_behind(hub, hub_backbone, repo, tmp_path, way):
    model = new_model(hub_backbone)
    next(model.backbone.parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match="adapter_only"):
        if way == "push_to_hub":
            model.push_to_hub(repo)
        else:
            model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=repo)
    assert repo not in hub.repositories and not (tmp_path / "saved").exists()


def test_a_damaged_download_is_noticed(hub, hub_backbone, repo):
    new_model(hub_backbone).push_to_hub(repo)
    weights = bytearray(hub.files(repo)["model.safetensors"])
    weights[-5] ^= 1
    hub.commit(repo, {"model.safetensors": bytes(weights)})
    with pytest.raises(OSError, match=f"{repo}.*model.safetensors"):
        load(repo)


# ---- Trainer --------------------------------------------------------------------------------------------------------


def test_trainer_pushes_a_model_that_loads(hub, hub_backbone, repo, tmp_path):
    model, tokenizer = new_model(hub_backbone), AutoTokenizer.from_pretrained(hub_backbone)
    before = predict(model)
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS * 2, (0, 1, 2, 1))]
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=1,
        learning_rate=0.01,
        per_device_train_batch_size=4,
        use_cpu=True,
        save_strategy="no",
        hub_model_id=repo,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub()
    model.eval()
    assert not torch.equal(predict(model), before)
    files = hub.files(repo)
    assert {"tokenizer.json", "tokenizer_config.json", "README.md", "modeling_pfberxit.py"} <= set(files)
    shutil.rmtree(tmp_path / "run")
    again = AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=True)
    assert same(again, model)
    answers = pipeline("text-classification", model=repo, trust_remote_code=True)(TEXTS)
    best = again(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.argmax(-1)
    assert [answer["label"] for answer in answers] == [again.config.id2label[label] for label in best.tolist()]
