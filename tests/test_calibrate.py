"""`pfberxit calibrate` and `pfberxit frontier` on a saved model: points that are stored, loaded by name and kept to."""

import csv
import json

import pytest
import torch
from tiny import enliven, save_backbone
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_pfberxit import ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.clock import Clock, measure_clock
from modeling_pfberxit.evaluation.frontier import sweep
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.evaluation.targets import store
from modeling_pfberxit.model.exit_policy import POLICY_CHECKS
from modeling_pfberxit.training.finetuning import new_model
from pfberxit.cli import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A model with lively exits, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("calibrated")
    backbone = save_backbone(folder / "encoder")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    task, _ = load_task("support_desk", "intent")
    torch.manual_seed(0)
    model = new_model(backbone, task, adapter_dim=8, adapter_num_heads=2)
    enliven(model)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def points(saved) -> dict:
    main(["calibrate", saved, "--config", "intent", "--speed-up", "1.5", "--max-drop", "0.5", "--agreement", "0.7",
          "--milliseconds", "1000", "--criteria", "entropy", "appointed"])  # fmt: skip
    return json.loads((open(saved + "/config.json")).read())["operating_points"]


def test_every_target_becomes_a_point_with_what_it_was_measured_to_do(points):
    assert set(points) == {"1.5x", "drop-0.5", "agreement-0.7", "1000ms"}
    for point in points.values():
        assert {"criterion", "metric", "score", "layers_saved", "macs", "dataset", "config", "split", "rows"} <= set(
            point
        )
        assert point["dataset"] == "support_desk" and point["split"] == "test" and point["rows"] == 102


def test_points_are_reported_on_rows_they_were_not_chosen_on(saved, points):
    model = PFBerxitForSequenceClassification.from_pretrained(saved).eval()
    task, data = load_task("support_desk", "intent")
    rows = encode(task, data["test"], AutoTokenizer.from_pretrained(saved))
    chosen_on, reported_on = record(model, rows).split(0.5, seed=0)
    differ = []
    for point in points.values():
        policy = ExitPolicy(**{name: value for name, value in point.items() if name in POLICY_CHECKS})
        here, there = (sweep(part, [policy], "accuracy")[0] for part in (reported_on, chosen_on))
        assert (point["score"], point["layers"]) == (round(here.score, 4), round(here.layers, 3))
        differ.append((here.score, here.layers) != (there.score, there.layers))
    assert any(differ), "or these rows could not tell"


def test_a_stored_point_is_used_by_its_name_and_does_what_it_says(saved, points):
    model = PFBerxitForSequenceClassification.from_pretrained(saved).eval()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    task, data = load_task("support_desk", "intent")
    rows = encode(task, data["test"], tokenizer)
    batch = tokenizer.pad({name: rows[name] for name in ("input_ids", "attention_mask")}, return_tensors="pt")
    with torch.inference_mode():
        layers = model(**batch, exit_policy="1.5x").exit_layer.double()
    assert 1 - layers.mean() / 6 == pytest.approx(points["1.5x"]["layers_saved"], abs=0.06)  # of all rows, not of half


@pytest.mark.parametrize("loader", [PFBerxitForSequenceClassification, AutoModelForSequenceClassification])
def test_a_point_named_at_load_time_is_the_models_own_rule(saved, points, tmp_path, loader):
    trust = {"trust_remote_code": True} if loader is AutoModelForSequenceClassification else {}
    plain = loader.from_pretrained(saved, **trust).eval()
    model = loader.from_pretrained(saved, **trust, exit_policy="1.5x").eval()
    batch = {"input_ids": torch.arange(5, 45).view(8, 5)}
    with torch.inference_mode():
        expected, found = plain(**batch, exit_policy="1.5x"), model(**batch)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.exit_layer, expected.exit_layer)
    model.save_pretrained(tmp_path)
    again = PFBerxitConfig.from_pretrained(tmp_path)
    assert again.exit_threshold == points["1.5x"].get("threshold") and again.operating_points == points


def test_a_policy_at_load_time_is_checked_like_one_of_a_call(saved, points):
    config = PFBerxitConfig.from_pretrained(saved, exit_policy={"criterion": "entropy", "threshold": 0.2})
    assert (config.exit_criterion, config.exit_threshold) == ("entropy", 0.2)
    with pytest.raises(ValueError, match="exit_policy='fastest'.*one of this model's operating points: .*1.5x"):
        PFBerxitForSequenceClassification.from_pretrained(saved, exit_policy="fastest")
    with pytest.raises(ValueError, match="threshold=-1"):
        PFBerxitConfig.from_pretrained(saved, exit_policy={"threshold": -1})


def test_points_are_added_to_those_there_are_and_nothing_else_changes(saved, points):
    before = json.loads(open(saved + "/config.json").read())
    store(saved, {"mine": {"criterion": "patience", "patience": 2}})
    after = json.loads(open(saved + "/config.json").read())
    assert set(after.pop("operating_points")) == {*before.pop("operating_points"), "mine"}
    assert after == before
    assert PFBerxitForSequenceClassification.from_pretrained(saved).config.operating_points["mine"]["patience"] == 2


def test_a_point_that_makes_no_policy_is_not_written(saved, points):
    before = open(saved + "/config.json").read()
    with pytest.raises(ValueError, match="threshold=-1.0"):
        store(saved, {"fast": {"threshold": -1.0}})
    assert open(saved + "/config.json").read() == before


def test_a_target_out_of_reach_ends_in_one_line_and_changes_nothing(saved, points):
    before = open(saved + "/config.json").read()
    with pytest.raises(SystemExit, match="pfberxit: speed_up=50.0: must be within reach"):
        main(["calibrate", saved, "--config", "intent", "--speed-up", "50", "--criteria", "entropy"])
    with pytest.raises(SystemExit, match="pfberxit: split='dev': must be one of train, test"):
        main(["calibrate", saved, "--config", "intent", "--split", "dev"])
    with pytest.raises(SystemExit, match="pfberxit: rows=-5: must be a whole number >= 0"):
        main(["calibrate", saved, "--config", "intent", "--rows", "-5"])
    with pytest.raises(SystemExit, match=r"pfberxit: criteria=\['entropy'\]: must be left out with agreement alone"):
        main(["calibrate", saved, "--config", "intent", "--agreement", "0.5", "--criteria", "entropy"])
    assert open(saved + "/config.json").read() == before


def test_the_frontier_is_written_as_recording_csv_and_picture(saved, tmp_path, capsys):
    main(["frontier", saved, "--config", "intent", "--rows", "60", "--output", str(tmp_path)])
    kept = Recording.load(tmp_path / "recording.safetensors")
    assert len(kept) == 60 and (kept.source["split"], kept.source["metric"]) == ("test", "accuracy")
    lines = list(csv.DictReader(open(tmp_path / "frontier.csv")))
    assert {"divergence_v1", "entropy", "max_prob", "voting", "appointed"} <= {line["criterion"] for line in lines}
    assert all(0 < float(line["macs"]) <= 1 and float(line["low"]) <= float(line["high"]) for line in lines)
    assert not [name for name in lines[0] if name.startswith("ms_")]
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert "| entropy |" in capsys.readouterr().out


def test_milliseconds_stand_in_the_frontier_where_they_are_asked_for(saved, tmp_path, monkeypatch):
    clock = Clock({(1, 8): (2.0, 0.5), (4, 16): (1.0, 0.25)})
    monkeypatch.setattr("modeling_pfberxit.evaluation.clock.measure_clock", lambda model, sizes, lengths: clock)
    asked = ["--batch-sizes", "1", "4", "--lengths", "8", "16"]
    main(["frontier", saved, "--config", "intent", "--rows", "40", "--output", str(tmp_path), *asked])
    lines = list(csv.DictReader(open(tmp_path / "frontier.csv")))
    for line in lines:
        layers = float(line["layers"])
        assert float(line["ms_batch1_length8"]) == pytest.approx(2 + 0.5 * layers, rel=1e-3)
        assert float(line["ms_batch4_length16"]) == pytest.approx(1 + 0.25 * layers, rel=1e-3)


def test_a_length_the_encoder_has_no_places_for_is_refused(saved):
    model = PFBerxitForSequenceClassification.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"lengths\[1\]=81: must be a whole number between 1 and 80"):
        measure_clock(model, (1,), (8, 81))
    clock = measure_clock(model, (1, 2), (8,), repeats=1)
    assert set(clock.lines) == {(1, 8), (2, 8)}


class Costly:
    """A model whose calls take 2 milliseconds and half of one for every layer, a row; a clock of its own tells them."""

    def __init__(self, model: PFBerxitForSequenceClassification):
        self.config, self.exit_depths, self.device, self.now = model.config, model.exit_depths, model.device, 0.0

    def eval(self) -> None:
        pass

    def __call__(self, input_ids: torch.Tensor, exit_policy: ExitPolicy) -> None:
        self.now += len(input_ids) * (2.0 + 0.5 * exit_policy.appointed_layer) / 1000


def test_a_clock_tells_the_part_of_every_call_from_that_of_every_layer(saved):
    costly = Costly(PFBerxitForSequenceClassification.from_pretrained(saved))
    clock = measure_clock(costly, (1, 4), (8, 16), timer=lambda: costly.now)
    for size in [(1, 8), (1, 16), (4, 8), (4, 16)]:
        assert clock.lines[size] == pytest.approx((2.0, 0.5))
        assert clock.at(*size)(4) == pytest.approx(4.0)
