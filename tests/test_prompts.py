"""Late Prompt Tuning: prompts join half-way up as if the stock encoder had been given more positions there."""

from collections import Counter
from contextlib import nullcontext
from itertools import count
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    CONFIGS,
    HIDDEN,
    LAYERS,
    final_norm,
    hooked,
    rows_of,
    save_backbone,
    stock_layers,
    tiny_batch,
    tiny_config,
    tiny_model,
)  # fmt: skip
from torch.nn import functional as F
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.positions import FromFirst, FromLargest, Prompts, Table

FAMILIES = list(CONFIGS)
GENERATORS = ["table", "npg", "mppg", "appg"]
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def prompted(
    family: str = "bert", generator: str = "npg", layer: int = 3, **knobs
) -> PFBerxitForSequenceClassification:
    """A frozen encoder with lively prompts and, unless asked for others, exits above them only."""
    knobs = {"num_labels": 3, "adapter_placement": "none", "exit_layers": [5], "prompt_length": 4, **knobs}
    model = tiny_model(family, prompt_generator=generator, prompt_layer=layer, prompt_dim=8, **knobs)
    for parameter in model.prompts.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def made_by_hand(prompts: Prompts, tokens: torch.Tensor) -> torch.Tensor:
    """The prompts of one row without padding, (n, d) -> (p, d), with torch's own adaptive pooling."""
    if isinstance(prompts, Table):
        return prompts.state_dict()["table.weight"]
    down, up = prompts.down, prompts.up
    if isinstance(prompts, FromFirst):
        return F.linear(F.linear(tokens[0], down.weight, down.bias).relu(), up.weight, up.bias).view(prompts.length, -1)
    pool = F.adaptive_max_pool1d if isinstance(prompts, FromLargest) else F.adaptive_avg_pool1d
    slots = pool(F.linear(tokens, down.weight, down.bias).T[None], prompts.length)[0].T
    return F.linear(slots.relu(), up.weight, up.bias)


def by_hand(model: PFBerxitForSequenceClassification, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The states of the tokens from the stock encoder, n + 1 times (B, n, d).

    Before layer k + 1 the prompts are put behind the first token, the stock mask made wider for them.
    """
    states, calls, encoder = [], count(), model.backbone
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    extra = model.config.prompt_length

    def without_prompts(hidden):
        return torch.cat([hidden[:, :1], hidden[:, 1 + extra :]], dim=1)

    def join(layer, inputs, keywords):
        hidden, *rest = inputs
        call = next(calls)
        states.append(without_prompts(hidden) if call > model.config.prompt_layer else hidden)
        if call == model.config.prompt_layer:
            rows = [made_by_hand(model.prompts, row[own.bool()]) for row, own in zip(hidden, mask, strict=True)]
            hidden = torch.cat([hidden[:, :1], torch.stack(rows), hidden[:, 1:]], dim=1)
        if call >= model.config.prompt_layer:
            wider = torch.cat([mask[:, :1].expand(-1, extra), mask], dim=1)
            rest, keywords = stock_context(encoder, layer, hidden, wider, rest, keywords)
        return (hidden, *rest), keywords

    kind = type(getattr(encoder, "encoder", encoder))  # DeBERTa's layers count distances anew where they are given none
    counts = patch.object(kind, "get_rel_pos", lambda *given: None) if hasattr(kind, "get_rel_pos") else nullcontext()
    with hooked(stock_layers(encoder), before=join, by_name=True), counts:
        states.append(without_prompts(encoder(**batch).last_hidden_state))
    return states


def stock_context(encoder, layer, hidden, mask, rest, keywords):
    """What the stock encoder would hand a layer beside states of this length: by place, and by name."""
    arguments, local = {"config": encoder.config, "inputs_embeds": hidden, "attention_mask": mask}, ()
    wanted = create_bidirectional_mask(**arguments)
    if getattr(layer, "attention_type", None) == "sliding_attention":
        wanted, local = create_bidirectional_sliding_window_mask(**arguments), (layer.attention_type,)
    elif hasattr(layer, "attention_type"):
        local = (layer.attention_type,)
    if "position_embeddings" in keywords:
        places = torch.arange(hidden.shape[1])[None]
        return rest, {"attention_mask": wanted, "position_embeddings": encoder.rotary_emb(hidden, places, *local)}
    if hasattr(encoder, "encoder") and hasattr(encoder.encoder, "get_attention_mask"):
        return [encoder.encoder.get_attention_mask(mask), *rest[1:]], keywords
    bias = [encoder.encoder.compute_position_bias(hidden)] if encoder.config.model_type == "mpnet" else rest[1:]
    return [wanted, *bias], keywords


# ---- the generators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 4, 5])
@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_a_generator_reads_each_rows_own_tokens(generator, length):
    prompts = prompted("bert", generator, prompt_length=length).prompts
    states = torch.randn(13, 13, HIDDEN, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(13, 13).tril()  # rows of 1, 2 ... 13 tokens: fewer and more than there are slots
    found = prompts(states.masked_fill(mask[..., None] == 0, 50.0), mask)
    assert found.shape == (13, length, HIDDEN)
    for row in range(13):
        torch.testing.assert_close(found[row], made_by_hand(prompts, states[row, : row + 1]), **CLOSE)
    torch.testing.assert_close(prompts(states[-1:], None)[0], found[-1])
    different = (found[12] - found[6]).abs().max() > 1e-3
    assert bool(different) == (generator != "table")


@pytest.mark.parametrize("generator", ["mppg", "appg"])
def test_pooled_prompts_pass_gradients_back_as_torchs_pooling_does(generator):
    prompts, tokens = prompted("bert", generator).prompts, torch.randn(1, 7, HIDDEN)
    weights = list(prompts.parameters())
    ours = torch.autograd.grad(prompts(tokens, None).square().sum(), weights)
    theirs = torch.autograd.grad(made_by_hand(prompts, tokens[0]).square().sum(), weights)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


# ---- the forward pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3, 5])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_prompts_are_the_stock_encoder_with_more_positions_from_there_on(family, layer):
    model, batch = prompted(family, "mppg", layer, exit_layers=None), tiny_batch(6, longest=11)
    output, expected = model(**batch, output_hidden_states=True), by_hand(model, batch)
    tokens = batch["attention_mask"].bool()
    assert len(output.hidden_states) == len(expected) == len(model.depths) + 1
    for ours, theirs in zip(output.hidden_states, expected, strict=True):
        assert ours.shape == theirs.shape == (6, 11, HIDDEN)
        torch.testing.assert_close(ours[tokens], theirs[tokens], **CLOSE)
    for exit, states in enumerate(expected[1:]):
        read = final_norm(model)(states) if exit + 1 < len(model.depths) else states
        mean = torch.stack([row[own].mean(0) for row, own in zip(read, tokens, strict=True)])  # of tokens alone
        torch.testing.assert_close(output.exit_logits[:, exit], model.exits.classifiers[exit](mean), **CLOSE)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@torch.no_grad()
def test_exits_read_the_tokens_and_not_the_prompts(generator, pooling):
    model = prompted("bert", generator, exit_pooling=pooling)
    for ids in rows_of(tiny_batch(5, longest=9)):
        output = model(input_ids=ids[None])
        states = by_hand(model, {"input_ids": ids[None]})
        for exit, depth in enumerate([5, 6]):
            pooled = states[depth][0].mean(0) if pooling == "mean" else states[depth][0, 0]
            torch.testing.assert_close(output.exit_logits[0, exit], model.exits.classifiers[exit](pooled), **CLOSE)


@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_prompts_change_what_stands_above_them_and_nothing_below(generator):
    model, batch = prompted("bert", generator, exit_layers=[2, 3, 4]), tiny_batch(5)
    plain = tiny_model("bert", num_labels=3, adapter_placement="none", exit_layers=[2, 3, 4])
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if "prompts" not in key})
    with_prompts, without = model(**batch).exit_logits, plain(**batch).exit_logits
    assert torch.equal(with_prompts[:, :2], without[:, :2])
    assert ((with_prompts[:, 2:] - without[:, 2:]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("sublearner", [None, "conv", "mlp"])
@torch.no_grad()
def test_batch_size_order_and_padding_never_change_an_answer(generator, sublearner):
    adapters = {"adapter_placement": "ffn", "adapter_sublearner": sublearner} if sublearner else {}
    model, batch = prompted("bert", generator, 2, exit_layers=None, **adapters), tiny_batch(40, seed=3, longest=12)
    doubts = torch.distributions.Categorical(logits=model(**batch).exit_logits).entropy().sort(0).values
    policy = {"criterion": "entropy", "threshold": doubts[19:21].mean(0).tolist()}  # the surer half of 40 at every exit
    expected = model(**batch, exit_policy=policy)
    assert len(set(expected.exit_layer.tolist())) >= 4
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    for part in (*shuffled.split(7), *shuffled.split(1), shuffled):
        for longest in (int(batch["attention_mask"][part].sum(1).max()), 17):
            wide = {name: F.pad(values, (0, 5))[part, :longest] for name, values in batch.items()}
            found = model(**wide, exit_policy=policy)
            assert torch.equal(found.exit_layer, expected.exit_layer[part])
            torch.testing.assert_close(found.logits, expected.logits[part], **CLOSE)


@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_among_tokens_that_leave_prompts_stay_and_are_made_of_the_tokens_in_their_own_order(generator):
    model, ids = prompted("bert", generator, token_exits=True), torch.randint(5, 100, (1, 11))
    model.token_exits.depths.random_(1, LAYERS + 1, generator=torch.Generator().manual_seed(1))
    output = model(input_ids=ids, output_hidden_states=True)
    layers, depth = output.token_layers, count(1)
    assert 1 < len(set(layers[0].tolist()))

    def put_back(layer, inputs, output):
        finished = layers < next(depth)
        prompts = torch.zeros(len(ids), inputs[0].shape[1] - ids.shape[1], dtype=torch.bool)
        finished = torch.cat([finished[:, :1], prompts, finished[:, 1:]], dim=1)
        return torch.where(finished[..., None], inputs[0], output)

    with hooked(stock_layers(model.backbone), after=put_back):
        expected = by_hand(model, {"input_ids": ids})
    for ours, theirs in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


# ---- training -------------------------------------------------------------------------------------------------------


def saved_for_backward(model: PFBerxitForSequenceClassification) -> tuple[Counter, Counter]:
    """How many tensors a training forward keeps: inside every layer, and between a layer (0: none yet) and the next."""
    inside, between, place = Counter(), Counter(), [False, 0]

    def enter(module, inputs):
        place[:] = True, place[1] + 1

    def leave(module, inputs, output):
        place[0] = False

    def keep(tensor):
        (inside if place[0] else between)[place[1]] += 1
        return tensor

    watched = hooked(model.depths, before=enter, after=leave)
    with watched, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(**tiny_batch(4), labels=torch.tensor([0, 1, 2, 0]))
    return inside, between


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("layer", [0, 3, 5])
def test_nothing_below_the_prompts_is_kept_for_the_backward_pass(generator, layer):
    inside, between = saved_for_backward(prompted("bert", generator, layer, exit_layers=[6]))
    assert sorted(inside) == list(range(layer + 1, LAYERS + 1))
    assert all(place >= layer for place in between)


def test_exits_below_the_prompts_keep_only_what_they_read():
    inside, between = saved_for_backward(prompted("bert", "npg", 3, exit_layers=[1, 2, 6]))
    assert sorted(inside) == [4, 5, 6]
    assert set(between) == {1, 2, 3, 6}
    below, _ = saved_for_backward(prompted("bert", "npg", 3, exit_layers=[6], adapter_placement="ffn"))
    assert sorted(below) == [1, 2, 3, 4, 5, 6], "an adapter below them would have shown"


@pytest.mark.parametrize("generator", GENERATORS)
def test_states_up_to_the_prompts_need_no_gradient(generator):
    model = prompted("bert", generator, 3).train()
    states = model(**tiny_batch(4), labels=torch.tensor([0, 1, 2, 0]), output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False] * 4 + [True] * 3


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert"])
@pytest.mark.parametrize("generator", GENERATORS)
def test_only_prompts_and_exits_are_trained(family, generator):
    model = prompted(family, generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(**tiny_batch(6), labels=torch.arange(6) % 3).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(("prompts.", "exits."))}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_loss_goes_down_by_the_prompts_alone():
    model, batch, labels = prompted("bert", "npg"), tiny_batch(12, seed=8), torch.arange(12) % 3
    model.exits.requires_grad_(False)
    optimizer, losses = torch.optim.AdamW(model.prompts.parameters(), lr=0.03), []
    for _ in range(40):
        loss = model.train()(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses[-5:]) < 0.8 * min(losses[:2])


# ---- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generator", GENERATORS)
@torch.no_grad()
def test_the_prompts_are_saved_without_the_encoder_and_load_back(tmp_path, generator):
    knobs = {"prompt_generator": generator, "prompt_layer": 2, "prompt_length": 3, "prompt_dim": 8}
    backbone = save_backbone(tmp_path / "encoder")
    model = PFBerxitForSequenceClassification.from_backbone(backbone, adapter_placement="none", **knobs)
    for parameter in (*model.prompts.parameters(), *model.exits.parameters()):
        parameter.normal_(0, 0.4)
    model.save_pretrained(tmp_path / "saved")
    kept = load_file(tmp_path / "saved" / "model.safetensors")
    assert {name.split(".")[0] for name in kept} == {"prompts", "exits"}
    loaded, batch = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved"), tiny_batch(5)
    torch.testing.assert_close(loaded(**batch).exit_logits, model(**batch).exit_logits)
    for name, value in model.prompts.state_dict().items():
        assert torch.equal(loaded.prompts.state_dict()[name], value)


def test_a_new_models_prompts_are_small_and_random():
    model = tiny_model("bert", prompt_generator="table", prompt_length=50, liven=False)
    assert 0.01 < model.prompts.table.weight.std() < 0.04
    assert tiny_model("bert").prompts is None


# ---- what cannot work is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"prompt_generator": "lstm"}, "prompt_generator='lstm'.*none, table, npg, mppg, appg"),
        ({"prompt_length": 0}, "prompt_length=0.*>= 1"),
        ({"prompt_dim": 0}, "prompt_dim=0.*>= 1"),
        ({"prompt_layer": -1}, "prompt_layer=-1.*>= 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        PFBerxitConfig.from_backbone(tiny_config(), **knobs)


@pytest.mark.parametrize("layer", [6, 7])
def test_prompts_above_the_last_layer_are_refused(layer):
    with pytest.raises(ValueError, match=f"prompt_layer={layer}.*0 to 5"):
        tiny_model("bert", prompt_generator="npg", prompt_layer=layer)
