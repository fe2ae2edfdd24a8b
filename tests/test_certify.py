"""`pfberxit certify`: what is promised is stored, said in words, and held against new texts; no text is used twice."""

import copy
import csv
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import read_folder
from tiny import enliven, save_backbone, tiny_batch
from transformers import AutoTokenizer, Trainer, TrainingArguments

from modeling_pfberxit import ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import load_task
from modeling_pfberxit.evaluation.bounds import evidence
from modeling_pfberxit.evaluation.certifying import origin
from modeling_pfberxit.evaluation.checking import Evidence as Checked
from modeling_pfberxit.evaluation.checking import State, look, void
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.evaluation.settings import Setting
from modeling_pfberxit.evaluation.used_texts import hashes, remember, used
from modeling_pfberxit.model.criteria import numbered
from modeling_pfberxit.model.evidence import SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import FULL_DEPTH, static
from modeling_pfberxit.training.certificate_card import section
from modeling_pfberxit.training.model_card import write_card
from pfberxit.cli import main

QUICK = ["--policy", '{"criterion": "max_prob"}']  # one rule alone


def write_texts(path: Path, seed: int, rows: int = 1000) -> str:
    """A CSV of random words, no text twice."""
    generator = random.Random(seed)
    texts = {" ".join(f"w{generator.randrange(100)}" for _ in range(generator.randrange(4, 9))) for _ in range(rows)}
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in sorted(texts))])
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model whose exits share one head, and texts: to certify on, and new ones."""
    folder = tmp_path_factory.mktemp("certified")
    backbone = save_backbone(folder / "encoder")
    torch.manual_seed(0)
    names = {"id2label": {0: "benign", 1: "attack"}, "label2id": {"benign": 0, "attack": 1}}
    model = PFBerxitForSequenceClassification.from_backbone(
        backbone, adapter_placement="none", exit_shared=True, **names
    )
    enliven(model)
    with torch.no_grad():  # about as many texts of one label as of the other, in the end
        logits = model.eval()(**tiny_batch(200)).logits
        model.exits.classifiers[0].bias[0] -= (logits[:, 0] - logits[:, 1]).median()
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder / "model")
    write_texts(folder / "texts.csv", 1)
    write_texts(folder / "new.csv", 2)
    return folder


@pytest.fixture
def model(folder, tmp_path) -> str:
    """A copy of the model that a test may change."""
    return str(shutil.copytree(folder / "model", tmp_path / "model"))


@pytest.fixture(scope="module")
def certified(folder) -> Path:
    """The model, certified at two rates."""
    made = Path(shutil.copytree(folder / "model", folder / "made"))
    main(["certify", str(made), str(folder / "texts.csv"), "--differ", "0.05", "0.1", "--max-length", "16"])
    return made


def points(folder) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())["operating_points"]


def test_certificates_are_stored_with_all_that_they_rest_on(certified):
    assert set(points(certified)) == {"certified-5%", "certified-10%"}
    about = points(certified)["certified-5%"]["certificate"]
    assert (about["epsilon"], about["confidence"], about["delta"]) == (0.05, 0.95, 0.025)
    assert about["rows"] + about["chosen_on"] == sum(len(each) for each in used(certified).values())
    assert {"date", "texts", "max_length", "columns", "missed", "claim", "dtype", "weights_sha256"} <= set(about)
    loaded = PFBerxitForSequenceClassification.from_pretrained(certified)
    stored = points(certified)["certified-5%"]
    assert loaded.config.exit_criterion == stored["criterion"] and loaded.config.exit_threshold == stored["threshold"]
    assert AutoTokenizer.from_pretrained(certified).model_max_length == 16


def test_the_card_says_it_in_plain_words_once(certified):
    card = (certified / "README.md").read_text()
    about = points(certified)["certified-5%"]["certificate"]
    assert card.count("## What is certified") == 1
    assert "At most 5 % of answers that differ from full depth's, with 95 % confidence, for texts drawn like" in card
    assert about["texts"] in card and about["date"] in card


def test_certificates_of_an_earlier_run_stay_in_the_card(certified, folder, tmp_path):
    model = shutil.copytree(certified, tmp_path / "model")
    main(["certify", str(model), str(folder / "new.csv"), "--differ", "0.2"])
    card = (model / "README.md").read_text()
    assert set(points(model)) == {"certified-5%", "certified-10%", "certified"} and section(points(model)) in card


def test_a_card_that_is_written_anew_says_it_again(certified, tmp_path):
    task, _ = load_task("support_desk", "intent")
    model = PFBerxitForSequenceClassification.from_pretrained(certified)
    setting = Setting("full depth", FULL_DEPTH, 0.5, np.array([6]), 6, {1: 1.0})
    write_card(tmp_path, model, task, [setting], training="-", evaluation="-", texts=["w1"])
    card = (tmp_path / "README.md").read_text()
    assert section(points(certified)) in card and card.index("## Use") < card.index("## What is certified")


def test_texts_that_were_used_are_refused_afterwards(certified, folder, capsys):
    with pytest.raises(SystemExit, match="0 texts .* used to certify, .* used to choose left out"):
        main(["certify", str(certified), str(folder / "texts.csv")])


def test_texts_that_trained_are_left_out_and_this_is_said(folder, model, capsys):
    with open(folder / "texts.csv") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    remember(model, train=hashes(texts[:100]))
    main(["certify", model, str(folder / "texts.csv"), "--differ", "0.2"])
    said = capsys.readouterr().out
    assert f"{len(texts) - 100:,} texts in text" in said and "100 texts are left out: used to train" in said
    assert len(used(model)["choose"]) + len(used(model)["certify"]) == len(texts) - 100


def test_a_model_that_does_not_say_what_trained_it_is_told_so(folder, model, capsys):
    main(["certify", model, str(folder / "texts.csv"), "--differ", "0.2"])
    assert "does not say which texts trained it; none of these may be among them" in capsys.readouterr().out
    remember(model, train=hashes(["one"]))
    main(["certify", model, str(folder / "new.csv"), "--differ", "0.2"])
    assert "does not say" not in capsys.readouterr().out


def test_none_passes_is_said_saved_as_full_depth_and_ends_with_3(folder, model, capsys):
    rule = json.dumps({"criterion": "appointed", "appointed_layer": 1})
    with pytest.raises(SystemExit) as ended:
        main(["certify", model, str(folder / "texts.csv"), "--policy", rule])
    assert ended.value.code == 3 and "now runs to full depth" in capsys.readouterr().out
    assert points(model) == {}
    assert PFBerxitForSequenceClassification.from_pretrained(model).config.exit_criterion is None


def test_too_few_texts_are_refused_with_the_number_it_takes_before_the_model_runs(folder, model, monkeypatch):
    monkeypatch.setattr(PFBerxitForSequenceClassification, "forward", None)
    with pytest.raises(SystemExit, match="must be at least 4279 texts"):
        main(["certify", model, str(folder / "texts.csv"), "--differ", "0.001"])
    with pytest.raises(SystemExit, match="differ=1.5: must be a number between 0 and 1"):
        main(["certify", model, str(folder / "texts.csv"), "--differ", "1.5"])


# ---- other weights --------------------------------------------------------------------------------------------------


def trained_further(folder) -> PFBerxitForSequenceClassification:
    """The model after one step of training."""
    model = PFBerxitForSequenceClassification.from_pretrained(folder).train()
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    model(**tiny_batch(4), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    return model


def test_a_model_that_is_trained_further_leaves_its_certificates_behind_and_says_so(certified, tmp_path, caplog):
    folder = shutil.copytree(certified, tmp_path / "model")
    model = trained_further(folder)
    rule = model.config.exit_threshold
    assert "certified-10%, certified-5%: a certificate speaks of the weights it was made on" in caplog.text
    model.save_pretrained(folder)
    assert points(folder) == {} == model.config.operating_points and rule == model.config.exit_threshold
    assert "certified-10%, certified-5%: left behind, since these weights are" in caplog.text
    assert "What is certified" not in (folder / "README.md").read_text()


def test_checkpoints_of_a_trainer_have_no_certificates(certified, tmp_path):
    model = PFBerxitForSequenceClassification.from_pretrained(certified)
    rows = [{"input_ids": [1, 5, 6], "labels": 0}, {"input_ids": [1, 7, 8], "labels": 1}]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, use_cpu=True, report_to="none")
    Trainer(model, arguments, train_dataset=rows).train()
    assert points(tmp_path / "checkpoint-1") == {}


@pytest.mark.parametrize("change", [lambda model: model.bfloat16(), enliven])
def test_weights_that_were_changed_by_hand_have_no_certificates(certified, tmp_path, change):
    model = PFBerxitForSequenceClassification.from_pretrained(certified)
    change(model)
    model.save_pretrained(tmp_path)
    assert points(tmp_path) == {}


def inside_peft(model):
    """LoRA beside the encoder's queries, as one that was trained."""
    peft = pytest.importorskip("peft")
    wanted = {"r": 2, "target_modules": ["query"], "init_lora_weights": False, "task_type": "SEQ_CLS"}
    return peft.get_peft_model(model, peft.LoraConfig(**wanted)).eval()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # asked for by PEFT
@pytest.mark.parametrize("change", [
    lambda model: model.bfloat16(),
    enliven,
    inside_peft,
    lambda model: inside_peft(model).merge_and_unload(),
    lambda model: model.load_state_dict({name: 2 * each for name, each in model.state_dict().items()}),
    lambda model: setattr(model.exits.classifiers[0].bias, "data", torch.ones_like(model.exits.classifiers[0].bias)),
])  # fmt: skip
def test_a_certificate_is_not_used_on_other_weights_in_memory(certified, change):
    model, batch = PFBerxitForSequenceClassification.from_pretrained(certified).eval(), tiny_batch(4)
    model(**batch, exit_policy="certified-5%")
    change(model)
    for ask in (lambda: model(**batch, exit_policy="certified-5%"),
                lambda: model.predict([{"input_ids": [1, 5]}], "certified-5%", progress=False)):  # fmt: skip
        with pytest.raises(ValueError, match="exit_policy='certified-5%': must be used [io]n .*certified"):
            ask()
    model(**batch, exit_policy={"threshold": 0.1})  # promises nothing


def test_a_certificate_is_not_used_where_autocast_computes_in_another_dtype(certified):
    model, batch = PFBerxitForSequenceClassification.from_pretrained(certified).eval(), tiny_batch(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for ask in (lambda: model(**batch, exit_policy="certified-5%"),
                    lambda: model.predict([{"input_ids": [1, 5]}], "certified-5%", progress=False)):  # fmt: skip
            with pytest.raises(
                ValueError, match="exit_policy='certified-5%': must be used in float32, .*under autocast to bf"
            ):
                ask()
        model(**batch, exit_policy={"threshold": 0.1})
        with torch.autocast("cpu", enabled=False):
            model(**batch, exit_policy="certified-5%")


def test_a_certificate_made_under_autocast_is_used_there_alone(certified):
    model, batch = PFBerxitForSequenceClassification.from_pretrained(certified).eval(), tiny_batch(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.config.operating_points["certified-5%"]["certificate"] |= origin(model)
        model(**batch, exit_policy="certified-5%")
    with pytest.raises(ValueError, match="must be used in float32 under autocast to bfloat16, as it was certified"):
        model(**batch, exit_policy="certified-5%")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_a_certificate_is_used_as_long_as_the_weights_are_the_same(certified):
    model, batch = PFBerxitForSequenceClassification.from_pretrained(certified).eval(), tiny_batch(4)
    answers = model(**batch, exit_policy="certified-5%").logits
    with torch.inference_mode():
        again = PFBerxitForSequenceClassification.from_pretrained(certified).eval()
        assert torch.equal(again(**batch, exit_policy="certified-5%").logits, answers)
    model.load_state_dict(model.state_dict())  # written to, the same
    for same in (model, copy.deepcopy(model), inside_peft(model).unload()):
        assert torch.equal(same(**batch, exit_policy="certified-5%").logits, answers)
    other = PFBerxitForSequenceClassification.from_pretrained(certified, dtype=torch.bfloat16).eval()
    with pytest.raises(
        ValueError, match="must be used in float32, as it was certified; this model computes in bfloat16"
    ):
        other(**batch, exit_policy="certified-5%")


def test_the_same_weights_keep_them_wherever_they_are_saved(certified, tmp_path, caplog):
    PFBerxitForSequenceClassification.from_pretrained(certified).save_pretrained(tmp_path)
    assert points(tmp_path) == points(certified) and "left behind" not in caplog.text


def test_a_config_with_certificates_brings_none_to_other_weights(certified, folder, caplog):
    config = PFBerxitConfig.from_pretrained(certified)
    model = PFBerxitForSequenceClassification.from_pretrained(folder / "model", config=config)
    assert set(model.config.operating_points) == {"certified-5%", "certified-10%"}  # the same weights
    config = PFBerxitConfig.from_pretrained(certified)
    trained_further(folder / "model").save_pretrained(folder / "other")
    assert (
        PFBerxitForSequenceClassification.from_pretrained(folder / "other", config=config).config.operating_points == {}
    )
    assert "left behind" in caplog.text


def test_weights_that_are_not_checked_have_no_certificates(certified):
    load = PFBerxitForSequenceClassification.from_pretrained
    assert load(certified, weights_sha256=None).config.operating_points == {} != load(certified).config.operating_points


def test_texts_that_trained_it_since_are_said_not_to_be_known(certified, folder, tmp_path, capsys):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    remember(model, train=hashes(["one"]))
    trained_further(model).save_pretrained(model)
    main(["certify", str(model), str(folder / "new.csv"), "--differ", "0.5", *QUICK])
    assert "does not say which texts trained it" in capsys.readouterr().out


# ---- where they are stored ------------------------------------------------------------------------------------------


def test_a_model_on_the_hub_is_certified_in_a_copy(folder, model, hub, tmp_path):
    hub.commit("acme/model", read_folder(model))
    options = [str(folder / "texts.csv"), "--differ", "0.1", "--max-length", "16", *QUICK]
    with pytest.raises(SystemExit, match="output=None: must be a folder for a copy of acme/model"):
        main(["certify", "acme/model", *options])
    mine = tmp_path / "mine"
    main(["certify", "acme/model", *options, "--output", str(mine)])
    main(["certify", model, *options])
    assert points(mine) == points(model) != {} and sorted(os.listdir(mine)) == sorted(os.listdir(model))
    assert (mine / "README.md").read_text().startswith("# mine\n")
    with pytest.raises(SystemExit, match="output=.*must be a folder without a model"):
        main(["certify", "acme/model", *options, "--output", str(mine)])
    with pytest.raises(SystemExit, match="output=.*must be left out with --check"):
        main(["certify", "acme/model", options[0], "--check", "--output", "x"])
    with pytest.raises(SystemExit, match="output=.*must be a folder outside .*, which is copied whole"):
        main(["certify", model, *options, "--output", f"{model}/copy"])


def test_a_killed_pass_goes_on_and_ends_in_the_same_certificate(folder, model, tmp_path, monkeypatch):
    options = [str(folder / "texts.csv"), "--differ", "0.1", "--max-length", "16", *QUICK]
    main(["certify", other := str(shutil.copytree(model, tmp_path / "other")), *options])
    seen, limit, forward = [], 600, PFBerxitForSequenceClassification.forward

    def counted(self, *arguments, **values):
        seen.append(len(values["input_ids"]))
        return forward(self, *arguments, **values) if sum(seen) <= limit else (_ for _ in ()).throw(KeyboardInterrupt)

    monkeypatch.setattr(PFBerxitForSequenceClassification, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        main(["certify", model, *options])
    assert points(model) == {} and not (Path(model) / "used_texts.safetensors").exists()
    seen, limit = [], 10_000
    main(["certify", model, *options])
    assert points(model) == points(other) and sum(seen) < 500  # 512 of the 1,000 texts were kept
    assert not (Path(model) / "certify-pass").exists()


# ---- check ----------------------------------------------------------------------------------------------------------


def test_evidence_against_a_rate_that_holds_reaches_its_limit_no_more_often_than_promised():
    generator, epsilon = np.random.default_rng(0), 0.02
    missed = (generator.random((1000, 2000)) < epsilon).cumsum(1)
    paths = evidence(missed, np.arange(1, 2001), epsilon).mean(-1)
    assert (paths.max(1) >= 20).sum() <= 70  # of 1,000, at 1 - 1/20; were one to look after every text
    worse = (generator.random((200, 2000)) < 2 * epsilon).cumsum(1)
    assert (evidence(worse, np.arange(1, 2001), epsilon).mean(-1).max(1) >= 20).mean() > 0.9
    assert (evidence(np.array(0), np.array(0), epsilon) == 1).all()


def test_a_certificate_that_breaks_after_years_without_a_miss_is_noticed_soon():
    known, every, later = Checked({}), np.ones(20_000, bool), np.arange(700) % 20 == 0  # five times the rate
    assert max(known.add("", every, np.zeros(20_000), 0.01)) < 1.01
    assert evidence(np.array(35), np.array(20_700), 0.01).mean() < 1e-6  # were all bets placed in front of the first
    assert max(known.add("", every[:700], later, 0.01)) > 20
    assert (known.rows[""], known.missed[""]) == (20_700, 35)


def test_a_state_of_a_version_that_placed_all_bets_at_first_goes_on_with_them():
    missed = np.random.default_rng(0).random(300) < 0.03
    old = Checked({}, rows={"": 200}, missed={"": int(missed[:200].sum())})
    path = old.add("", np.ones(100, bool), missed[200:], 0.02)
    assert path[-1] == pytest.approx(evidence(missed.sum(), 300, 0.02).mean())


def test_new_texts_are_counted_once_however_often_one_looks(certified, folder, tmp_path, capsys):
    state = str(tmp_path / "state.json")
    for _ in range(2):
        main(["certify", str(certified), str(folder / "new.csv"), "--check", "--state", state])
    kept, said = json.loads(Path(state).read_text()), capsys.readouterr().out
    rows = kept["certificates"]["certified-5%"]["rows"][""]
    assert rows == len(kept["texts"]) == len(set(kept["texts"]))
    assert f"{rows:,} texts are left out: checked before" in said
    assert said.count("no evidence against it") == 4 and "holds" not in said


def test_texts_in_the_order_of_their_labels_are_the_same_evidence():
    misses = torch.zeros(400, dtype=torch.long)
    misses[:8] = 1
    logits = torch.nn.functional.one_hot(torch.stack([misses, torch.zeros_like(misses)], 1), 2).float()
    kept = Recording(Evidence(logits), torch.full((400,), 5), None, [1, 2], SINGLE_LABEL)
    point = {**static(1).stated(), "certificate": {"claim": "differ", "epsilon": 0.02}}
    numbers = hashes(f"text {number}" for number in range(400))
    states = []
    for order in (torch.arange(400), torch.randperm(400, generator=torch.Generator().manual_seed(0))):
        states.append(State())
        look(states[-1], kept.select(order), numbers[order], {"certified": point})
    assert states[0] == states[1] and states[0].certificates["certified"].most < 20


def test_a_broken_certificate_is_called_broken_for_good(certified, folder, tmp_path, capsys):
    model = Path(shutil.copytree(certified, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["operating_points"]["certified-5%"] |= {"criterion": "appointed", "appointed_layer": 1}
    config["operating_points"]["certified-5%"]["certificate"]["epsilon"] = 0.005  # five times as many differ
    (model / "config.json").write_text(json.dumps(config))
    state = str(tmp_path / "state.json")
    command = ["certify", str(model), str(folder / "new.csv"), "--check", "--policy", "certified-5%", "--state", state]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 4
    assert capsys.readouterr().out.count("certified-5%: broken") == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--check", "--max-length", "32"], "max_length=32: must be as certified-10% was certified, 16"),
        (["--differ", "0.2", "--max-length", "32"], "max_length=32: must be 16, as certified-10% was certified"),
        (["--check", "--differ", "0.01"], "differ=.0.01.: must be left out with --check"),
        (["--check", "--seed", "0"], "seed=0: must be left out with --check"),
        (["--check", "--per-label"], "per_label=..: must be left out with --check"),
        (["--check", "--claim", "flips"], "claim='flips': must be left out with --check"),
        (["--check", "--tolerance", "0.1"], "tolerance=0.1: must be left out with --check"),
        (["--check", "--policy", "fast"], "policy='fast': must be one of the certificates"),
        (["--state", "x"], "state='x': must be given together with --check"),
    ],
)
def test_a_check_of_something_else_is_refused(certified, folder, more, message):
    with pytest.raises(SystemExit, match=message):
        main(["certify", str(certified), str(folder / "new.csv"), *more])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--claim", "speed"], "claim='speed': must be one of differ, "),
        (["--per-label", "nosuch"], "per_label=.'nosuch'.: must be labels of "),
        (["--tolerance", "0.1"], "tolerance=0.1: must be left out for single_label"),
        (["--policy", '{"treshold": 0.3}'], "exit_policy=.'treshold'.: must be a dict with fields of "),
        (["--policy", '{"criterion": "distance"}'], "policy='distance': must be a rule that this model's exits can "),
        (["--policy", '{"label_thresholds": {"nosuch": null}}'], "exit_label_thresholds='nosuch': must be a label, "),
    ],
)
def test_a_claim_that_cannot_be_made_is_refused_before_any_text_is_read(certified, more, message):
    with pytest.raises(SystemExit, match=message):
        main(["certify", str(certified), "nowhere.csv", *more])


def test_a_check_of_another_column_is_refused(certified, folder, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text((folder / "new.csv").read_text().replace("text", "message", 1))
    with pytest.raises(SystemExit, match="columns=.'message'.: must be as certified-10% was certified, .'text'."):
        main(["certify", str(certified), str(other), "--check"])


@pytest.mark.parametrize(("length", "said"), [("16", False), ("32", True)])
def test_answers_at_another_length_are_said_to_be_without_the_certificate(
    certified, folder, tmp_path, capsys, length, said
):
    output = str(tmp_path / "answers.csv")
    main(["predict", str(certified), str(folder / "new.csv"), "--output", output, "--max-length", length])
    words = "The certificate certified-5% does not hold for these answers: it was made at max_length=16, here 32."
    assert (words in capsys.readouterr().out) == said


def test_a_certificate_of_labels_by_name_is_found_by_the_rule_of_a_call():
    rule, labels = ExitPolicy("entropy", threshold=0.3, label_thresholds={"attack": None}), ["benign", "attack"]
    points = {"certified": {**rule.stated(), "certificate": {"max_length": 16}}}
    assert void(points, numbered(rule, labels), {"max_length": 32}, labels) == {"certified": {"max_length": 16}}


def test_a_claim_about_labels_reads_all_rows_of_a_file(folder, model, tmp_path, capsys):
    with open(folder / "texts.csv") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    data = tmp_path / "labelled.csv"
    with open(data, "w", newline="") as file:
        csv.writer(file).writerows(
            [["text", "label"], *([text, ["benign", "attack"][len(text) % 2]] for text in texts)]
        )
    main(["certify", model, str(data), "--label", "label", "--claim", "newly_wrong", "--differ", "0.3"])
    assert f"{len(texts):,} texts in text" in capsys.readouterr().out
