"""`pfberxit train`: from a file to a folder that loads, with the options it was given and none of them dropped."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.frontier import layer_scores
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.used_texts import hashes, is_used
from modeling_pfberxit.training import session
from modeling_pfberxit.training.fields import training_fields
from modeling_pfberxit.training.session import balanced_weights
from pfberxit.cli import main, set_apart
from pfberxit.train import plan_of

RESUME = ["--resume_from_checkpoint", "true"]
QUICK = ["--bf16", "false", "--disable_tqdm", "true", "--per_device_train_batch_size", "8", "--set", "adapter_dim=4"]


def csv_of(path: Path, header: list[str], rows: list) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Sixty messages whose label is a word of theirs; one label is rare."""
    names = ["no"] * 30 + ["yes"] * 24 + ["rare"] * 6
    rows = [[f"w{i % 9} w{20 + len(name)} w{i % 7}", name, i] for i, name in enumerate(names)]
    return csv_of(tmp_path_factory.mktemp("data") / "mine.csv", ["message", "intent", "id"], rows)


def train(data: str, backbone: str, output: Path, *more: str) -> None:
    named = ["--text", "message", "--label", "intent"]
    main(["train", data, *named, "--backbone", backbone, "--output", str(output), *QUICK, *more])


def planned(*words: str, data: str = "x.csv"):
    """The plan that words make."""
    from pfberxit.cli import parser

    words, others = set_apart(["train", data, "--output", "out", *words])
    options = vars(parser().parse_args(words))
    for name in ("run", "command", "push"):
        options.pop(name)
    return plan_of(options.pop("output"), others, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, local_backbone) -> tuple[Path, str]:
    """A finished folder and what was printed."""
    import contextlib
    import io

    folder, printed = tmp_path_factory.mktemp("runs") / "mine", io.StringIO()
    with contextlib.redirect_stdout(printed):
        train(
            data, local_backbone, folder, "--num_train_epochs", "2", "--max-length", "12", "--class-weights", "balanced"
        )
    return folder, printed.getvalue()


def test_one_line_ends_in_a_folder_with_model_tokenizer_settings_and_card(trained, data):
    folder, printed = trained
    files = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "modeling_pfberxit.py"} <= files
    assert not any(name.startswith(("checkpoint-", "training_args")) for name in files)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.id2label == {0: "no", 1: "rare", 2: "yes"}
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 12
    card = (folder / "README.md").read_text()
    assert "mine.csv, 44 rows" in card and all(name in card for name in model.config.operating_points)
    assert "44 rows to train, 4 to choose on, 12 of validation to report on" in printed


def test_the_printed_score_of_every_exit_is_that_of_the_saved_model_on_rows_it_did_not_see(trained, data):
    folder, printed = trained
    model = PFBerxitForSequenceClassification.from_pretrained(folder).eval()
    task, parts = load_task(data, text="message", label="intent", model=model)
    rows = encode(task, parts["validation"], AutoTokenizer.from_pretrained(folder), 12)
    for depth, score in zip(model.exit_depths, layer_scores(record(model, rows), "accuracy")):
        assert f"| {depth} | {score:.3f} |" in printed


def test_texts_that_trained_or_chose_are_remembered_with_the_model_so_that_none_certifies(trained, data):
    _, parts = load_task(data, text="message", label="intent")
    found = is_used(trained[0], hashes(parts["train"]["message"]))
    assert found["train"].sum() >= 44 and (found["train"] | found["choose"]).all()


def test_it_is_what_predict_reads(trained, data, tmp_path):
    main(
        ["predict", str(trained[0]), data, "--text", "message", "--output", str(tmp_path / "a.csv"), "--device", "cpu"]
    )
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 61


# ---- options ---------------------------------------------------------------------------------------------------------


def test_training_arguments_go_under_their_own_names_wherever_they_stand():
    words = ["train", "--num_train_epochs", "3", "d.csv", "--seed=4", "--output", "o", "--bf16", "--text", "t"]
    assert set_apart(words) == (["train", "d.csv", "--output", "o", "--text", "t"],
                                ["--num_train_epochs", "3", "--seed=4", "--bf16"])  # fmt: skip
    found = training_fields(["--num_train_epochs", "3", "--seed=4", "--bf16", "--lr_scheduler_type", "cosine"])
    assert found == {"num_train_epochs": 3.0, "seed": 4, "bf16": True, "lr_scheduler_type": "cosine"}
    assert set_apart(["calibrate", "m", "--unknown", "1"])[1] == [], "other commands know all of their options"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_train_epoch", "3"], "--num_train_epoch=.*is --num_train_epochs meant"),
        (["--outptu", "3"], "--outptu=.*is --output meant"),
        (["--num_train_epochs", "three"], "invalid float value: 'three'"),
        (["--lr_scheduler_type", "cosin"], "lr_scheduler_type.*invalid choice"),
        (["--output_dir", "x"], "--output_dir=.*here it is --output"),
        (["--push_to_hub", "true"], "here it is --push"),
        (["--hub_private_repo", "true"], "here it is --push to a repository that is private"),
        (["--label_smoothing_factor", "0.1"], "here it is --set label_smoothing"),
        (["--set", "num_labels=5"], "num_labels=5: must be left out of the fields to set: the labels of the data"),
        (["--set", "backbone=x"], "backbone='x': must be left out of the fields to set: --backbone says it"),
        (["--class-weights", "balanced", "--set", "class_weights=[1, 2]"], "class_weights=.*left out beside"),
        (["--system", "pabe"], "system='pabe': must be one of"),
        (["--recipe", "cola"], "recipe='cola': must be one of sst2"),
        (["--policy", "fast"], "policy='fast': must be a JSON object"),
        (["--set", "adapter_dim"], "set='adapter_dim': must be NAME=VALUE"),
        (["--device", "cuda:3"], "device='cuda:3': must be cpu, or cuda"),
        (["--dtype", "bfloat16", "--bf16", "false"], "dtype='bfloat16': must be left out beside --bf16"),
        (["--rows", "-1"], "rows=-1: must be a whole number"),
        (["--text", "body"], "text='body': must be one of the columns message, intent, id"),
        (["--held-out", "48"], "held_out=48: must be at least 1 and fewer than the 48"),
        (["--set", "adapter_dmi=3"], "adapter_dmi"),
        (["--max-length", "1000"], "max_length=1000: must be between 3 and 80"),
        (["--policy", '{"treshold": 1}'], "treshold"),
        (["--split", "test"], "split='test': must be one of train"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint='true': must be left out: no run has begun"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, data, local_backbone, words, message):
    with pytest.raises(SystemExit, match=message):
        train(data, local_backbone, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("checkpoint-*"))


def test_what_is_given_wins_over_the_recipe_and_the_recipe_over_the_usual():
    plan = planned("--recipe", "mrpc", "--num_train_epochs", "1", "--max-length", "64", "--set", "adapter_dim=9")
    assert plan.backbone == "sentence-transformers/all-MiniLM-L6-v2" and plan.config is None
    assert (plan.max_length, plan.fields["num_train_epochs"], plan.fields["learning_rate"]) == (64, 1.0, 1e-3)
    assert plan.knobs == {"adapter_sublearner": "mlp", "adapter_dim": 9}
    assert planned("--recipe", "mrpc", data="nyu-mll/glue").config == "mrpc", "the recipe's own data"
    assert planned().backbone == "albert/albert-base-v2" and planned().max_length is None


def test_every_option_reaches_the_plan():
    words = (
        "--config c --text a --pair b --label x y --problem-type p --label-form ; --split s --backbone e --revision r "
        "--system pabee --rows 5 --held-out 6 --class-weights balanced --early-stopping 2 --device cpu --dtype float32"
    )
    plan = planned(*words.split(), "--policy", '{"patience": 1}', "--set", "exit_pooling=cls", "adapter_dim=3")
    assert (plan.dataset, plan.output, plan.backbone, plan.config, plan.split) == ("x.csv", "out", "e", "c", "s")
    assert plan.columns == {"text": "a", "pair": "b", "label": ["x", "y"], "problem_type": "p", "label_form": ";"}
    assert (plan.revision, plan.rows, plan.held_out, plan.balanced, plan.early_stopping) == ("r", 5, 6, True, 2)
    assert plan.knobs == {"system": "pabee", "exit_pooling": "cls", "adapter_dim": 3}
    assert (plan.policy, plan.fields) == ({"patience": 1}, {"use_cpu": True, "bf16": False, "fp16": False})


# ---- what is trained -------------------------------------------------------------------------------------------------


def test_balanced_weights_by_hand():
    assert balanced_weights(np.array([0, 0, 0, 1]), 2) == pytest.approx([4 / 6, 2.0], abs=1e-6)
    assert balanced_weights(np.array([0, 0, 0, 1]), 3)[2] == 1.0, "a class without a row"
    assert balanced_weights(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]), 2) == [1.0, 1.0]


def test_class_weights_are_kept_with_the_model_and_refused_for_values(trained, tmp_path, local_backbone):
    weights = json.loads((trained[0] / "config.json").read_text())["class_weights"]
    assert weights[1] > 3 * weights[0]
    values = csv_of(tmp_path / "v.csv", ["message", "intent"], [[f"w{i}", i / 7] for i in range(20)])
    with pytest.raises(SystemExit, match="class_weights='balanced': must be left out for regression"):
        train(values, local_backbone, tmp_path / "out", "--class-weights", "balanced")


def test_rows_to_train_on_to_choose_on_and_to_report_on_share_none(data, local_backbone, tmp_path):
    plan = planned("--backbone", local_backbone, "--text", "message", "--label", "intent", data=data)
    task, parts = load_task(data, text="message", label="intent")
    train_rows, chosen_on = session.split_rows(plan, task, parts["train"], seed=3)
    ids = [set(part["id"]) for part in (train_rows, chosen_on, parts["validation"])]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 60
    assert "rare" in parts["validation"]["intent"][:], "classes in proportion"


@pytest.mark.parametrize("system", ["pabee", "deebert", "hashee", "de3-bert", "appointed"])
def test_systems_of_every_kind_end_in_a_folder(data, local_backbone, tmp_path, system):
    knobs = [] if system != "deebert" else ["--early-stopping", "1"]
    train(data, local_backbone, tmp_path / "out", "--system", system, "--num_train_epochs", "1", *knobs)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["system"] == system
    expected = PFBerxitForSequenceClassification.from_backbone(local_backbone, system=system).config.exit_criterion
    assert config["exit_criterion"] == expected, "though every exit of every row was run while it learned"


@pytest.mark.parametrize("kind", ["several", "value", "pair"])
def test_several_labels_values_and_pairs(tmp_path, local_backbone, kind):
    cells = {"several": lambda i: ["a", "a;b", "b"][i % 3], "value": lambda i: i / 7, "pair": lambda i: "xy"[i % 2]}
    path = csv_of(
        tmp_path / "d.csv",
        ["message", "intent", "other"],
        [[f"w{i} w{i % 3}", cells[kind](i), f"w{i % 5}"] for i in range(40)],
    )
    train(path, local_backbone, tmp_path / "out", "--num_train_epochs", "1", *(["--pair", "other"] * (kind == "pair")))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {"several": ["a", "b"], "value": ["intent"], "pair": ["x", "y"]}[kind]
    assert list(config["id2label"].values()) == expected


# ---- best model, early stop, resume ----------------------------------------------------------------------------------


class Killed(TrainerCallback):
    """Ends the process's work in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def killed_at(monkeypatch, step: int, stage: int | None = None) -> None:
    new_trainer = session.new_trainer

    def with_end(model, *parts):
        trainer = new_trainer(model, *parts)
        if stage in (None, model.config.training_stage):
            trainer.add_callback(Killed(step))
        return trainer

    monkeypatch.setattr(session, "new_trainer", with_end)


WITHIN = [f"--{what}_{word}" for what in ("save", "eval") for word in ("strategy", "steps")]
WITHIN = [word for pair in zip(WITHIN, ["steps", "4"] * 2) for word in pair]  # checkpoints within epochs


@pytest.mark.parametrize(
    ("system", "stage", "more"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("pf-berxit", None, []), ("deebert", 1, []))),
        ("deebert", 2, []),
        ("pf-berxit", None, WITHIN),
    ],
)
def test_a_killed_run_goes_on_and_ends_in_the_same_weights(
    data, local_backbone, tmp_path, monkeypatch, system, stage, more
):
    asked = ["--system", system, "--num_train_epochs", "3", "--early-stopping", "0", *more]
    train(data, local_backbone, tmp_path / "whole", *asked)
    with monkeypatch.context() as patched:
        killed_at(patched, 9, stage)  # six steps an epoch: one checkpoint, or two
        with pytest.raises(KeyboardInterrupt):
            train(data, local_backbone, tmp_path / "cut", *asked)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(SystemExit, match="output=.*a run has begun there. --resume_from_checkpoint true goes on"):
        train(data, local_backbone, tmp_path / "cut", *asked)
    with pytest.raises(SystemExit, match="asked with what the run began with; other: fields"):
        train(
            data, local_backbone, tmp_path / "cut", *asked, "--learning_rate", "1", "--resume_from_checkpoint", "true"
        )
    train(data, local_backbone, tmp_path / "cut", *asked, "--resume_from_checkpoint", "true")
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from modeling_pfberxit.training import session
from pfberxit.cli import main

class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

new_trainer = session.new_trainer
def with_end(*parts):
    trainer = new_trainer(*parts)
    trainer.add_callback(Killed())
    return trainer
session.new_trainer = with_end
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_process_that_was_killed_is_gone_on_with_by_another(data, local_backbone, tmp_path):
    def command(output: str, *more: str) -> list[str]:
        words = ["train", data, "--text", "message", "--label", "intent", "--backbone", local_backbone]
        return [*words, "--output", str(tmp_path / output), "--num_train_epochs", "3", *QUICK, *more]

    start = [sys.executable, "-m", "pfberxit"]
    subprocess.run([*start, *command("whole")], check=True)
    assert subprocess.run([sys.executable, "-c", KILLED, *command("cut")]).returncode == -signal.SIGKILL
    assert not (tmp_path / "cut").exists()
    subprocess.run([*start, *command("cut", *RESUME)], check=True)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_the_best_epoch_is_kept_and_a_run_without_progress_ends(data, local_backbone, tmp_path, monkeypatch):
    runs = []
    trainer_of = session.trainer_of
    monkeypatch.setattr(session, "trainer_of", lambda *parts: runs.append(trainer_of(*parts)) or runs[-1])
    train(
        data,
        local_backbone,
        tmp_path / "out",
        "--num_train_epochs",
        "9",
        "--early-stopping",
        "2",
        "--learning_rate",
        "0",
    )
    (run,) = runs
    assert run.state.epoch == 3, "one epoch sets the score, two do not better it"
    assert run.args.metric_for_best_model == "mean_accuracy"
    assert run.state.best_model_checkpoint.endswith("checkpoint-6")


def test_a_finished_folder_is_not_overwritten(trained, data, local_backbone):
    before = (trained[0] / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="output=.*nothing is overwritten"):
        train(data, local_backbone, trained[0])
    assert (trained[0] / "model.safetensors").read_bytes() == before


def test_no_repository_is_made_for_a_run_that_is_refused(data, local_backbone, hub, tmp_path):
    with pytest.raises(SystemExit, match="held_out=48"):
        train(data, local_backbone, tmp_path / "out", "--held-out", "48", "--push", "acme/never")
    assert hub.sha("acme/never") is None and not hub.requests


@pytest.mark.parametrize("own", [True, False])
def test_one_row_of_every_class_is_refused_as_too_few(own, local_backbone, tmp_path):
    for name in ("train", "dev") if own else ("train",):
        csv_of(tmp_path / f"{name}.csv", ["message", "intent"], [["w1", "no"], ["w2", "yes"], ["w3", "rare"]])
    with pytest.raises(SystemExit, match="dataset='3 rows, each of another class': must be two rows of one class"):
        train(str(tmp_path / "*.csv"), local_backbone, tmp_path / "out")


def test_pushed_is_what_the_folder_has_and_no_checkpoint(data, hub_backbone, hub, tmp_path, capsys):
    train(data, hub_backbone, tmp_path / "out", "--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no",
          "--push", "acme/pushed-by-train")  # fmt: skip
    files = set(hub.files("acme/pushed-by-train"))
    assert {file.name for file in (tmp_path / "out").iterdir()} <= files
    assert not any("checkpoint-" in name for name in files)
