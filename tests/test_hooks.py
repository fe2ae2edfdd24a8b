"""Whoever hooks a layer of the encoder is called, though its parts are run in its place."""

import json
import logging
from pathlib import Path

import pytest
import torch
from tiny import CONFIGS, final_norm, hooked, rows_of, stock_layers, tiny_batch, tiny_model
from train_script import in_two_processes

BATCH = tiny_batch(6)
EARLY = {"criterion": "max_prob", "threshold": 0.5}


def depths_of(model) -> list[torch.nn.Module]:
    """The stock layer that every depth runs."""
    layers = stock_layers(model.backbone)
    return [layers[i * len(layers) // len(model.depths)] for i in range(len(model.depths))]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_layer_is_handed_what_goes_in_and_gives_what_comes_out(family):
    model, calls = tiny_model(family, num_labels=3, adapter_placement="both"), []
    with (
        torch.no_grad(),
        hooked(
            list(dict.fromkeys(stock_layers(model.backbone))),
            after=lambda module, inputs, output: calls.append((type(module), inputs[0], output)),
        ),
    ):
        states = model(**BATCH, output_hidden_states=True).hidden_states
    assert [kind for kind, _, _ in calls] == [type(stock_layers(model.backbone)[0])] * len(model.depths)
    for number, ((_, before, after), expected) in enumerate(zip(calls, zip(states, states[1:]), strict=True), 1):
        read = final_norm(model)(after) if number == len(calls) else after
        assert torch.equal(before, expected[0]) and torch.equal(read, expected[1])


@pytest.mark.parametrize("place", ["backbone", "depths"])
def test_hooks_before_and_after_may_change_what_passes(place):
    model = tiny_model(num_labels=3)
    layer = model.backbone.encoder.layer[3] if place == "backbone" else model.depths[3]
    with torch.no_grad():
        states = model(**BATCH, output_hidden_states=True).hidden_states
        hook = layer.register_forward_pre_hook(lambda module, args, kwargs: ((states[0], *args[1:]), kwargs),
                                               with_kwargs=True)  # fmt: skip
        swapped = model(**BATCH, output_hidden_states=True).hidden_states
        hook.remove()
        assert torch.equal(swapped[3], states[3]) and not torch.allclose(swapped[4], states[4])
        double = (lambda m, i, o: 2 * o) if place == "backbone" else (lambda m, i, o: (2 * o[0], o[1]))
        hook = layer.register_forward_hook(double)
        doubled = model(**BATCH, output_hidden_states=True).hidden_states
        hook.remove()
    assert torch.equal(doubled[4], 2 * states[4]) and not torch.equal(doubled[5], states[5])


def test_hooks_on_the_way_back_are_called():
    model, seen = tiny_model(num_labels=3, train_backbone=True).train(), []
    layer = model.backbone.encoder.layer[2]
    layer.register_full_backward_hook(lambda module, into, out: seen.append(out[0].shape))
    model(**BATCH, labels=torch.arange(6) % 3).loss.backward()
    assert seen == [(6, 16, 32)]


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert"])
@pytest.mark.parametrize("place", ["backbone", "depths"])
def test_hooks_see_the_rows_that_are_still_there_and_change_no_answer(family, place):
    model = tiny_model(family, num_labels=3, exit_pooling="cls")
    rows, modules = [{"input_ids": row} for row in rows_of(BATCH)], depths_of(model) if place == "backbone" else []
    with torch.no_grad():
        plain, predicted = model(**BATCH, exit_policy=EARLY), model.predict(rows, exit_policy=EARLY, progress=False)
        sizes = []
        with hooked(list(dict.fromkeys(modules or model.depths)), after=lambda m, i, o: sizes.append(len(i[0]))):
            watched = model(**BATCH, exit_policy=EARLY)
            alone, sizes = list(sizes), []
            streamed = model.predict(rows, exit_policy=EARLY, progress=False, batch_size=3)
    layers = plain.exit_layer
    assert layers.min() < len(model.depths) and torch.equal(watched.exit_layer, layers)
    assert alone == [int((layers >= depth).sum()) for depth in range(1, int(layers.max()) + 1)]
    assert sum(sizes) == layers.sum() and torch.equal(streamed.exit_layer, predicted.exit_layer)
    torch.testing.assert_close(watched.logits, plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(streamed.logits, plain.logits, atol=1e-5, rtol=1e-5)


def test_the_encoder_itself_is_left_as_it_was():
    model = tiny_model(num_labels=3)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with hooked(stock_layers(model.backbone), after=lambda *call: None):
        model(**BATCH)
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys() and "forward" not in module.__dict__


@pytest.mark.parametrize("name", ["attention", "attention.self", "intermediate", "output"])
def test_a_hook_that_is_never_called_is_named(name, caplog):
    from modeling_pfberxit.model import layers as hooks

    model = tiny_model(num_labels=3)
    hooks.logger.warning_once.cache_clear()
    logging.getLogger("transformers").propagate = True
    try:
        with hooked([model.backbone.encoder.layer[3].get_submodule(name)], before=lambda *call: pytest.fail("called")):
            model(**BATCH)
    finally:
        logging.getLogger("transformers").propagate = False
    assert f"backbone.encoder.layer.3.{name}: its hooks are never called" in caplog.text


@pytest.mark.parametrize("family", CONFIGS)
def test_every_module_is_called_or_known_not_to_be(family):
    from modeling_pfberxit.model.backbones import encoder_layers, never_called

    model, called = tiny_model(family, num_labels=3), set()
    silent = {id(module) for module in never_called(model.backbone, encoder_layers(model.backbone))}
    inside = {name: module for name, module in model.backbone.named_modules() if "dropout" not in name.lower()}
    lists = {name for name, module in inside.items() if isinstance(module, torch.nn.ModuleList)}
    with hooked([inside[name] for name in inside.keys() - lists], before=lambda module, inputs: called.add(module)):
        model(**BATCH)
    shadows = {type(module) for module in called if module not in inside.values()}  # of the layers
    for name, module in inside.items():
        if name not in lists and id(module) not in silent and type(module) not in shadows:
            assert module in called or "act" in name, name


def test_the_first_version_of_fsdp_is_refused_by_name():
    model = tiny_model(num_labels=3)
    wrapper = torch.nn.Module()
    wrapper._fsdp_wrapped_module = model.backbone.encoder.layer[0]
    for part in ("attention", "intermediate", "output"):
        setattr(wrapper, part, getattr(wrapper._fsdp_wrapped_module, part))
    model.backbone.encoder.layer[0] = wrapper
    with pytest.raises(ValueError, match="fsdp_version=1: must be 2"):
        model(**BATCH)


def test_layers_and_adapters_are_never_split_between_devices():
    assert {"AdaptedLayer", "BertLayer"} <= set(tiny_model("bert")._no_split_modules)


# ---- sharded --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What two processes found that share the weights of one model."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "settings.json").write_text(json.dumps({"families": ["bert", "albert"], "output": str(folder)}))
    in_two_processes(Path(__file__).with_name("shard_script.py"), folder / "settings.json")
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_sharded_layers_learn_what_whole_ones_do(sharded, family):
    for found in sharded:
        whole, apart = found[family]["losses"]
        assert apart == pytest.approx(whole, abs=1e-5) and whole[0] - whole[-1] > 0.01
        assert found[family]["weights"] < 1e-5


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_rows_leave_sharded_layers_as_they_leave_whole_ones(sharded, family):
    for found in sharded:
        whole, apart = found[family]["layers"]
        assert whole == apart and len(set(whole)) > 1 and found[family]["logits"] < 1e-5
        assert "fully_shard" in found[family]["predict"]
    assert sharded[0][family]["layers"] != sharded[1][family]["layers"]
