"""A rule, a sub-learner and a pooling in a few lines each: whatever knows those there are knows a new one as well."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import enliven, save_backbone, tiny_batch, tiny_model
from torch import Tensor, nn
from transformers import AutoTokenizer

from modeling_pfberxit import ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import load_task
from modeling_pfberxit.evaluation.calibration import agreement, calibrate, conformal, ladder
from modeling_pfberxit.evaluation.macs import adapter_macs
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.model.adapters import SUBLEARNERS
from modeling_pfberxit.model.criteria import CRITERIA, Criterion
from modeling_pfberxit.model.exit_policy import describe
from modeling_pfberxit.model.heads import POOLINGS, Pooling
from modeling_pfberxit.model.scores import decide_above
from modeling_pfberxit.studies.presets import presets, rules_table
from modeling_pfberxit.training.finetuning import new_model
from modeling_pfberxit.training.finished import POINTS, choose_policies
from modeling_pfberxit.training.model_card import adapter_line, model_facts
from pfberxit.cli import main

# ---- a rule ---------------------------------------------------------------------------------------------------------


def score_margin(now: Tensor, evidence, state, policy) -> Tensor:
    """How far the two likeliest outcomes are apart, of the label where that is least, (B,)."""
    likeliest = now.exp().topk(2, dim=-1).values
    return (likeliest[..., 0] - likeliest[..., 1]).amin(-1)


MARGIN = Criterion("its two likeliest outcomes are at least τ apart", score_margin, decide_above)


@pytest.fixture(scope="module", autouse=True)
def margin() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CRITERIA, "margin", MARGIN)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    """A model that leaves by the new rule, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("margin")
    backbone, (task, _) = save_backbone(folder / "encoder"), load_task("support_desk", "intent")
    torch.manual_seed(0)
    model = new_model(backbone, task, adapter_dim=8, adapter_num_heads=2, exit_criterion="margin", exit_threshold=0.4)
    enliven(model)
    model.save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def kept() -> Recording:
    """What a lively model's exits said, and labels that its last exit mostly gets right."""
    model = tiny_model("bert", num_labels=3, exit_criterion="margin")
    recording = record(model, [tiny_batch(400, shortest=4)])
    last = recording.evidence.logits[:, -1].argmax(-1)
    return Recording(recording.evidence, recording.lengths, last, recording.exit_depths, recording.problem_type)


@pytest.mark.parametrize("problem_type", MARGIN.problem_types)
def test_it_leaves_online_as_in_a_stream_and_in_replay(problem_type):
    model = tiny_model("bert", num_labels=3, problem_type=problem_type)
    batch, policy = tiny_batch(40), ExitPolicy("margin", threshold=0.4)
    rows = [{"input_ids": ids[mask.bool()]} for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    with torch.inference_mode():
        online = model(**batch, exit_policy=policy)
    streamed = model.predict(rows, exit_policy=policy, batch_size=8, progress=False)
    answers, layers = record(model, [batch]).replay(policy)
    assert len(set(layers.tolist())) > 2
    for found in (streamed.exit_layer, online.exit_layer):
        assert torch.equal(found, layers)
    for found in (streamed.logits, online.logits):
        torch.testing.assert_close(found, answers)


def test_it_is_described_checked_and_listed():
    assert describe(ExitPolicy("margin", threshold=0.4)) == "margin, threshold 0.4"
    assert describe(ExitPolicy("margin")) == "margin; full depth without a threshold"
    assert PFBerxitConfig(exit_criterion="margin").exit_criterion == "margin"
    assert "| `margin` | its two likeliest outcomes are at least τ apart | τ | labels |" in rules_table()
    with pytest.raises(ValueError, match="exit_criterion='margin': must be a rule for regression"):
        tiny_model("bert", num_labels=1)(**tiny_batch(2), exit_policy=ExitPolicy("margin", threshold=0.4))


def test_it_has_settings_of_its_own_and_every_target_is_met(kept):
    model = tiny_model("bert", num_labels=3, exit_criterion="margin")
    chosen = choose_policies(model, kept)
    taus = [policy.threshold for policy in chosen.values()]
    assert list(chosen) == list(POINTS) and taus == sorted(set(taus), reverse=True)  # careful is the highest
    one, other = kept.split()
    for target in ({"speed_up": 1.5}, {"max_drop": 0.05}, {"milliseconds": 4.0, "time_of": lambda layers: layers}):
        assert calibrate(one, other, "accuracy", criteria=["margin"], **target).policy.criterion == "margin"
    rungs = ladder(one, other, "accuracy", criteria=["margin"])
    assert len({rung.policy for rung in rungs}) == len(rungs) > 1
    policy = conformal(one, ExitPolicy("margin"), 0.2)
    _, layers = one.replay(policy)
    wrong = ~agreement(one)[torch.arange(len(one)), layers - 1]
    assert 0 < wrong.float().mean() <= 0.2 and layers.float().mean() < 6


def test_every_command_goes_through_with_it(saved, tmp_path, capsys):
    data = ["--config", "intent", "--rows", "60"]
    main(["frontier", saved, *data, "--output", str(tmp_path)])
    assert "| margin |" in capsys.readouterr().out
    points, recording = str(tmp_path / "frontier.csv"), str(tmp_path / "recording.safetensors")
    targets = ["--speed-up", "1.2", "--max-drop", "1", "--agreement", "0.5", "--milliseconds", "10000"]
    main(["calibrate", saved, *data, "--criteria", "margin", *targets])
    assert "| margin, threshold" in capsys.readouterr().out
    stored = json.loads((Path(saved) / "config.json").read_text())["operating_points"]
    assert {point["criterion"] for point in stored.values()} == {"margin"}
    assert all(
        {"criterion", "threshold", "min_layer"} <= set(point) and "patience" not in point for point in stored.values()
    )
    main(["elue", points, "--static", recording])
    assert "| margin |" in capsys.readouterr().out
    main(["report", recording, "--policy", '{"criterion": "margin", "threshold": 0.4}'])
    assert "By length" in capsys.readouterr().out
    main(["precision", saved, *data, "--policy", "1.2x"])
    assert "margin, threshold" in capsys.readouterr().out
    loaded = PFBerxitForSequenceClassification.from_pretrained(saved, exit_policy="1.2x").eval()
    assert loaded.config.exit_criterion == "margin" and loaded.config.exit_threshold == stored["1.2x"]["threshold"]


# ---- a sub-learner, a pooling ---------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Every feature scaled by a number of its own."""

    reach = 0

    def __init__(self, config):
        super().__init__()
        self.gate = nn.Linear(config.adapter_dim, config.adapter_dim, bias=False)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None) -> Tensor:
        return hidden_states * self.gate(hidden_states).sigmoid()


def test_a_fifth_sublearner_is_built_run_priced_and_listed(monkeypatch, tmp_path):
    monkeypatch.setitem(SUBLEARNERS, "gate", Gate)
    model = tiny_model("bert", adapter_sublearner="gate", adapter_only=False)
    assert sum(isinstance(module, Gate) for module in model.modules()) == 6
    batch, policy = tiny_batch(6), ExitPolicy("entropy", threshold=0.4)
    model.save_pretrained(tmp_path)
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(model(**batch, exit_policy=policy).logits, again(**batch, exit_policy=policy).logits)
    others = {
        name: adapter_macs(PFBerxitConfig(adapter_sublearner=name), 768, 128) for name in ("identity", "gate", "mlp")
    }
    assert others["gate"] == others["mlp"] == others["identity"] + 128 * 32 * 32
    assert adapter_line(model.config).startswith("gate, r = 8")
    assert presets()["albert-base-v2-gate"].adapter_sublearner == "gate"
    with pytest.raises(ValueError, match="must be one of identity, self_attention, conv, mlp, gate"):
        PFBerxitConfig(adapter_sublearner="gait")


def largest(hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n, d) -> (B, d): of every feature the largest value."""
    missing = torch.zeros_like(hidden_states[..., :1]) if weights is None else weights.transpose(1, 2)
    return hidden_states.masked_fill(missing == 0 if weights is not None else missing.bool(), -torch.inf).amax(1)


def test_a_third_pooling_is_built_run_alone_as_in_a_batch_and_said_in_the_card(monkeypatch):
    monkeypatch.setitem(POOLINGS, "max", Pooling(largest, "largest value"))
    model = tiny_model("bert", exit_pooling="max", num_labels=3)
    batch, policy = tiny_batch(8), ExitPolicy("entropy", threshold=0.6)
    together = model(**batch, exit_policy=policy)
    assert len(set(together.exit_layer.tolist())) > 1
    for ids, mask, logits in zip(batch["input_ids"], batch["attention_mask"], together.logits):
        alone = model(input_ids=ids[mask.bool()][None], exit_policy=policy)
        torch.testing.assert_close(alone.logits[0], logits, rtol=1e-4, atol=1e-5)
    assert model_facts(model)["exit_pooling"] == "largest value"
