"""Equation 1, its placements, and the paper's parameter counts."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_batch, tiny_config, tiny_model
from torch.nn import functional as F

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.adapters import SUBLEARNERS, Adapter

PRESETS = Path(__file__).parents[1] / "configuration"
# Table 2 of the paper: adapters, and all parameters of the model
TABLE_2 = {
    "identity": (617_856, 12_329_124),
    "conv": (631_296, 12_342_564),
    "self-attention": (669_312, 12_380_580),
    "mlp": (630_528, 12_341_796),
}


def preset(name: str, **changes) -> PFBerxitConfig:
    config = PFBerxitConfig.from_pretrained(PRESETS / f"{name}.json", **changes)
    return config


@pytest.mark.parametrize(("sublearner", "counts"), TABLE_2.items())
def test_parameter_counts_are_table_2s(sublearner, counts):
    with torch.device("meta"):
        model = PFBerxitForSequenceClassification(preset(f"albert-base-v2-{sublearner}"))
    adapters = sum(p.numel() for name, p in model.named_parameters() if "adapter" in name)
    assert (adapters, model.num_parameters()) == counts


def test_both_readings_of_the_convolution_have_the_papers_count():
    for kernel in (1, 3):
        with torch.device("meta"):
            adapter = Adapter(preset("albert-base-v2-conv", adapter_conv_kernel=kernel), 768)
        assert 12 * sum(p.numel() for p in adapter.parameters()) == 631_296
    with torch.device("meta"):
        wider = Adapter(preset("albert-base-v2-conv", adapter_conv_kernel=5), 768)
    assert 12 * sum(p.numel() for p in wider.parameters()) != 631_296


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.json")), ids=lambda path: path.stem)
def test_every_preset_loads_and_names_what_it_is(path):
    config = PFBerxitConfig.from_pretrained(path)
    assert config.base_model_name_or_path.split("/")[1] in path.stem
    assert path.stem.endswith(config.adapter_sublearner.replace("_", "-"))
    assert config.base_model_revision is None
    written = json.loads(path.read_text())
    fresh = PFBerxitConfig().to_dict()
    missing = {name for name in fresh if name.startswith(("adapter_", "exit_", "train_", "use_", "lte_"))} - set(
        written
    )
    assert not missing, "a preset states every knob"


def settings(sublearner: str = "identity", **changes) -> PFBerxitConfig:
    knobs = {"adapter_dim": 8, "adapter_num_heads": 2, "adapter_sublearner": sublearner, **changes}
    return PFBerxitConfig.from_backbone(tiny_config(), **knobs)


def lively(adapter: Adapter) -> Adapter:
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return adapter.eval()


def test_equation_1_by_hand():
    adapter = lively(Adapter(settings("mlp", adapter_scaling=2.0, adapter_activation="tanh"), 32))
    x = torch.randn(2, 5, 32)
    normed = F.layer_norm(x, (32,), adapter.norm.weight, adapter.norm.bias)
    bottleneck = torch.tanh(normed @ adapter.down.weight.T + adapter.down.bias)
    learned = bottleneck @ adapter.sublearner.dense.weight.T + adapter.sublearner.dense.bias
    expected = 2.0 * (learned @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(adapter(x), expected)


def test_the_convolution_by_hand():
    adapter = lively(Adapter(settings("conv"), 32))
    x, conv = torch.randn(1, 4, 8), adapter.sublearner
    kernel = conv.depthwise.weight[:, 0]  # (r, 3)
    padded = torch.cat([torch.zeros(1, 1, 8), x, torch.zeros(1, 1, 8)], dim=1)
    mixed = torch.stack([(padded[0, i : i + 3] * kernel.T).sum(0) for i in range(4)])
    torch.testing.assert_close(conv(x, None)[0], torch.relu(mixed @ conv.pointwise.weight.T))


def test_the_self_attention_equals_torchs_own():
    adapter = lively(Adapter(settings("self_attention"), 32))
    x, own = torch.randn(3, 6, 8), adapter.sublearner
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        reference.out_proj.load_state_dict(own.out.state_dict())
    mixed, _ = reference(x, x, x, key_padding_mask=mask == 0)
    expected = torch.relu(own.norm(x + mixed))
    torch.testing.assert_close(own(x, mask)[mask.bool()], expected[mask.bool()])


def test_the_norm_outside_is_the_last_step():
    adapter = lively(Adapter(settings("mlp", adapter_layer_norm="out"), 32))
    x = torch.randn(2, 3, 32)
    inner = adapter.up(adapter.sublearner(adapter.activation(adapter.down(x)), None))
    torch.testing.assert_close(adapter(x), adapter.output_norm(inner))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("sublearner", SUBLEARNERS)
def test_padding_is_never_read(sublearner, kernel):
    adapter = lively(Adapter(settings(sublearner, adapter_conv_kernel=kernel), 32))
    x, mask = torch.randn(2, 7, 32), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    other = torch.where(mask[..., None].bool(), x, torch.full_like(x, 50.0) + torch.randn_like(x))
    assert not torch.equal(x, other)
    torch.testing.assert_close(adapter(other, mask)[mask.bool()], adapter(x, mask)[mask.bool()])
    torch.testing.assert_close(adapter(x, mask)[1, :4], adapter(x[1:, :4])[0])


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("sublearner", SUBLEARNERS)
def test_an_adapter_reaches_as_far_as_it_says(sublearner, kernel):
    adapter = lively(Adapter(settings(sublearner, adapter_conv_kernel=kernel), 32))
    x = torch.randn(1, 13, 32)
    other = x.clone()
    other[0, 6] = torch.randn(32)
    changed = (adapter(x) - adapter(other)).abs().amax(-1)[0] > 1e-6
    reach = 6 if adapter.reach is None else adapter.reach
    assert changed.nonzero().flatten().tolist() == list(range(6 - reach, 6 + reach + 1))


@pytest.mark.parametrize("placement", ["ffn", "attention", "both", "sequential"])
def test_placements_are_the_formulas(placement):
    model = tiny_model("bert", adapter_placement=placement, adapter_sublearner="mlp", adapter_scaling=0.7)
    batch = tiny_batch(4, longest=4, shortest=4)
    states = model(**batch, output_hidden_states=True).hidden_states
    depth, layer = model.depths[2], model.backbone.encoder.layer[2]
    x = states[2]
    y = layer.attention.output.dense(layer.attention.self(x)[0])
    beside_attention = {"attention": x, "both": x, "sequential": y}.get(placement)
    added = 0 if beside_attention is None else depth.attention_adapter(beside_attention)
    a = layer.attention.output.LayerNorm(x + y + added)
    ffn = layer.output.dense(layer.intermediate(a))
    added = depth.ffn_adapter(a) if placement in ("ffn", "both") else 0
    torch.testing.assert_close(states[3], layer.output.LayerNorm(a + ffn + added))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"adapter_num_heads": 3, "adapter_sublearner": "self_attention"},
            "adapter_num_heads=3.*divisor of adapter_dim=8",
        ),
        ({"adapter_conv_kernel": 4, "adapter_sublearner": "conv"}, "adapter_conv_kernel=4.*odd"),
        ({"adapter_sublearner": "lora"}, "adapter_sublearner='lora'.*identity, self_attention, conv, mlp"),
        ({"adapter_dim": 0}, "adapter_dim=0.*>= 1"),
        ({"adapter_scaling": float("nan")}, "adapter_scaling=nan.*finite"),
        ({"exit_layers": [2, 9]}, r"exit_layers=\[2, 9\].*1 to 6"),
        ({"exit_layers": [4, 2]}, r"exit_layers=\[4, 2\].*increasing"),
        ({"adaptr_dim": 4}, r"knobs=\['adaptr_dim'\].*fields"),
    ],
)
def test_values_that_do_not_fit_end_in_one_line(knobs, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny_model("bert", **knobs)
    assert "\n" not in str(caught.value)
