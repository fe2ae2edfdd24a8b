"""Token first: running a row's first token before the others changes no answer, and for rows that leave saves the rest.

A row is held against itself alone, without padding and at full depth, what its exits said replayed.
"""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch
from test_criteria_promises import OUTPUTS, in_turn, recorded_from, setting
from tiny import CHECKPOINTING, LAYERS, hooked, rows_of, tiny_batch, tiny_model
from torch.testing import assert_close

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model.backbones import encoder_layers
from modeling_pfberxit.model.evidence import REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.model.execution import Execution

PLAIN = Execution(token_first=False, drop_rows=False, trim=False)
ROWS, CLOSE = 33, {"atol": 2e-5, "rtol": 1e-4}
FAMILIES = ("albert", "bert", "distilbert")
SUBLEARNERS = ("identity", "mlp", "conv", "self_attention")
PLACEMENTS = ("ffn", "attention", "both", "sequential", "bypass")
ADAPTERS = [("mlp", "none"), *((sublearner, placement) for sublearner in SUBLEARNERS for placement in PLACEMENTS)]
BATCHES = {
    "padded": lambda: tiny_batch(ROWS, shortest=1),
    "of one length": lambda: tiny_batch(ROWS, longest=9, shortest=9),
}


class Eager(Execution):
    """The token comes first wherever a row may leave."""

    def splits(self, leaving: float, rows: int, length: int, device: str) -> bool:
        return leaving > 0


EAGER = Eager(weights_in_tokens=0.0)


@cache
@torch.no_grad()
def cls_model(
    family: str = "bert", sublearner: str = "mlp", placement: str = "ffn", problem: str = SINGLE_LABEL, **knobs
) -> PFBerxitForSequenceClassification:
    """A model whose exits read the first token; what they say differs from row to row and centres on zero."""
    emits = {
        "use_lte": True,
        "lte_shared": "exit_shared" in knobs,
        "use_prototypes": problem != REGRESSION,
        "use_nsp": True,
    }
    adapter = {"adapter_sublearner": sublearner, "adapter_placement": placement}
    labels = {"num_labels": OUTPUTS[problem], "problem_type": problem}
    model = tiny_model(family, exit_pooling="cls", **adapter, **labels, **emits, **knobs)
    model.get_input_embeddings().weight.mul_(30)
    said = model(**tiny_batch(100, seed=7))
    if not model.config.exit_shared:
        for number, (classifier, lte) in enumerate(zip(model.exits.classifiers, model.exits.ltes, strict=True)):
            classifier.bias -= said.exit_logits[:, number].mean(0)
            lte.bias -= said.exit_lte[:, number].logit().mean()
    return model


@contextmanager
def executed(model: PFBerxitForSequenceClassification, execution: Execution):
    """The model with other short cuts, for a while."""
    model.execution = execution
    try:
        yield model
    finally:
        del model.execution


@torch.no_grad()
def run(model, batch, policy, execution: Execution, size: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Answers and layers, in batches of so many rows."""
    parts = torch.arange(len(batch["input_ids"])).split(size)
    with executed(model, execution):
        outputs = [model(**{name: part[rows] for name, part in batch.items()}, exit_policy=policy) for rows in parts]
    return torch.cat([output.logits for output in outputs]), torch.cat([output.exit_layer for output in outputs])


def alone(model: PFBerxitForSequenceClassification, rows: list[dict[str, torch.Tensor]]) -> Evidence:
    """What all exits say of every row, each run on its own, without padding and to the last layer."""
    with executed(model, PLAIN):
        parts = [recorded_from(model, {name: values[None] for name, values in row.items()}) for row in rows]
    return Evidence.cat(parts)


def same(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor], rows=slice(None)):
    assert found[1].tolist() == expected[1][rows].tolist()
    assert_close(found[0], expected[0][rows], **CLOSE)


@contextmanager
def counted(model: PFBerxitForSequenceClassification, *names: str):
    """How many positions each layer's stock linear layers run for, while the model runs: lists, a number per layer."""
    layers = encoder_layers(model.backbone)
    counts = {name: [0] * len(layers) for name in names}
    numbers = {getattr(layer, name): (name, number) for name in names for number, layer in enumerate(layers)}

    def count(module, inputs):
        name, number = numbers[module]
        counts[name][number] += inputs[0].shape[:-1].numel()

    with hooked(list(numbers), before=count):
        yield counts


# ---- the answers ----------------------------------------------------------------------------------------------------


WITH_BATCHES = [  # every family with every adapter, and both with every batch
    (family, *adapter, *(("padded", "entropy") if number % 2 else ("of one length", "divergence_v1")))
    for number, (family, adapter) in enumerate(product(FAMILIES, ADAPTERS))
]


@pytest.mark.parametrize(("family", "sublearner", "placement", "batch", "rule"), WITH_BATCHES)
def test_the_token_first_changes_no_answer_whatever_the_adapter(family, sublearner, placement, batch, rule):
    model, batch, some = cls_model(family, sublearner, placement), BATCHES[batch](), 4
    policy = setting(rule, SINGLE_LABEL, recorded_from(model, batch))
    expected = run(model, batch, policy, PLAIN)
    assert len(set(expected[1].tolist())) >= 3
    by_itself = alone(model, [{"input_ids": ids} for ids in rows_of(batch)[:some]])
    same(replay(by_itself, policy, model.exit_depths, SINGLE_LABEL), expected, slice(some))
    same(run(model, batch, policy, EAGER), expected)
    same(run(model, batch, policy, EAGER, 7), expected)
    head = {name: values[:some] for name, values in batch.items()}
    same(run(model, head, policy, EAGER, 1), expected, slice(some))


@cache
def rows_alone(family: str, sublearner: str, placement: str, problem: str) -> Evidence:
    rows = [{"input_ids": ids} for ids in rows_of(BATCHES["padded"]())]
    return alone(cls_model(family, sublearner, placement, problem), rows)


@pytest.mark.parametrize(
    ("problem", "name", "made_of"), in_turn(("albert", "conv", "bypass"), ("bert", "conv", "both"))
)
def test_the_token_first_changes_no_answer_whatever_the_criterion(problem, name, made_of):
    family, sublearner, placement = made_of
    model, batch = cls_model(family, sublearner, placement, problem), BATCHES["padded"]()
    by_itself = rows_alone(family, sublearner, placement, problem)
    policy = setting(name, problem, by_itself)
    expected = replay(by_itself, policy, model.exit_depths, problem)
    assert len(set(expected[1].tolist())) >= (1 if name == "appointed" else 3)
    same(run(model, batch, policy, PLAIN), expected)
    for size in (7, 33):
        same(run(model, batch, policy, EAGER, size), expected)
    same(run(model, {name: values[:8] for name, values in batch.items()}, policy, EAGER, 1), expected, slice(8))


OTHERS = {
    "prompts": {"prompt_generator": "appg", "prompt_layer": 2, "prompt_length": 3, "prompt_dim": 8},
    "wide convolution": {"sublearner": "conv", "placement": "both", "adapter_conv_kernel": 7},
    "wide bypass": {"sublearner": "conv", "placement": "bypass", "adapter_conv_kernel": 7},
    "norm behind": {"adapter_layer_norm": "out"},
    "some exits": {"exit_layers": (2, 5)},
    "one exit for all": {"exit_shared": True},
    "own poolers": {"exit_pooler": "own"},
    "backbone's pooler": {"exit_pooler": "backbone"},
}


@pytest.mark.parametrize(("family", "implementation"), [("albert", "sdpa"), ("bert", "eager")])
@pytest.mark.parametrize("knobs", OTHERS.values(), ids=OTHERS)
def test_the_token_first_changes_no_answer_whatever_else_there_is(knobs, family, implementation):
    model, batch = cls_model(family, **knobs), BATCHES["padded"]()
    model.set_attn_implementation(implementation)
    by_itself = alone(model, [{"input_ids": ids} for ids in rows_of(batch)])
    policy = setting("max_prob", SINGLE_LABEL, by_itself)
    expected = replay(by_itself, policy, model.exit_depths, SINGLE_LABEL)
    assert len(set(expected[1].tolist())) >= 2
    for size in (7, 33):
        same(run(model, batch, policy, EAGER, size), expected)


def test_in_half_precision_the_token_first_gives_the_same_up_to_rounding():
    model = tiny_model("albert", num_labels=3, exit_pooling="cls", adapter_sublearner="conv", adapter_placement="both")
    model.backbone.embeddings.word_embeddings.weight.data.mul_(30)
    model, batch = model.bfloat16(), BATCHES["padded"]()
    policy = setting("entropy", SINGLE_LABEL, recorded_from(model, batch))
    (expected, layers), (found, depths) = (run(model, batch, policy, execution) for execution in (PLAIN, EAGER))
    assert found.dtype == torch.bfloat16 and len(set(layers.tolist())) >= 3
    agree = depths == layers  # bf16 may round a row over the threshold
    assert agree.float().mean() > 0.8
    assert_close(found[agree], expected[agree], atol=0.1, rtol=0.05)


# ---- what it saves --------------------------------------------------------------------------------------------------

READ = {  # sub-learner, placement: positions that an exit reads, and those that the last layer's attention is asked for
    ("mlp", "none"): (1, 1),
    ("mlp", "both"): (1, 1),
    ("conv", "ffn"): (1, 2),
    ("conv", "attention"): (1, 1),
    ("conv", "both"): (1, 2),
    ("conv", "sequential"): (1, 2),
    ("self_attention", "ffn"): (1, 9),
    ("self_attention", "attention"): (1, 1),
    ("self_attention", "sequential"): (1, 9),
    ("conv", "bypass"): (2, 2),
    ("self_attention", "bypass"): (9, 9),
}


@pytest.mark.parametrize(("rule", "first"), [("patience", 2), ("entropy", 3)])
@pytest.mark.parametrize(("sublearner", "placement"), READ)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_row_that_leaves_is_run_for_what_its_exit_reads(family, sublearner, placement, rule, first):
    model, batch, length = cls_model(family, sublearner, placement), BATCHES["of one length"](), 9
    read, asked = READ[sublearner, placement]
    policy = replace(setting(rule, SINGLE_LABEL, recorded_from(model, batch)), patience=1, min_layer=first)
    with counted(model, "up", "query") as positions:
        _, layers = run(model, batch, policy, EAGER)
    assert len(set(layers.tolist())) >= 3
    for name, few in (("up", read), ("query", asked)):
        expected = []
        for depth in range(1, LAYERS + 1):
            here, stay = int((layers >= depth).sum()), int((layers > depth).sum())
            splits = first <= depth and read < length  # rows that stay are run once more, for all positions
            expected.append(here * few + stay * length if splits or depth == LAYERS else here * length)
        assert positions[name] == expected


def test_layers_without_an_exit_are_run_at_once():
    model, batch = cls_model("bert", exit_layers=(2, 5)), BATCHES["of one length"]()
    policy = setting("entropy", SINGLE_LABEL, recorded_from(model, batch))
    with counted(model, "up") as positions:
        _, layers = run(model, batch, policy, EAGER)
    after_two, after_five = (int((layers > depth).sum()) for depth in (2, 5))
    assert 0 < after_five < after_two < ROWS
    assert positions["up"] == [
        ROWS * 9, ROWS + after_two * 9, after_two * 9, after_two * 9, after_two + after_five * 9, after_five
    ]  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["full depth", "training"])
@pytest.mark.parametrize(("sublearner", "placement"), READ)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_run_for_what_its_exit_reads(family, sublearner, placement, training):
    model, batch = cls_model(family, sublearner, placement), BATCHES["of one length"]()
    read, asked = READ[sublearner, placement]
    with counted(model, "up", "query") as positions:
        model.train(training)(**batch, labels=torch.zeros(ROWS, dtype=torch.long))
        model.eval()
    for name, few in (("up", read), ("query", asked)):
        assert sum(positions[name]) == ROWS * ((LAYERS - 1) * 9 + few)


def test_whoever_asks_for_states_gets_all_of_the_last_layer():
    model, batch = cls_model("bert", "conv", "both"), BATCHES["padded"]()
    output, tokens = model(**batch, output_hidden_states=True), batch["attention_mask"].bool()
    with executed(model, PLAIN):
        expected = model(**batch, output_hidden_states=True)
    for found, states in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert_close(found[tokens], states[tokens], **CLOSE)


NO_DROPOUT = {
    **dict.fromkeys(("albert", "bert"), {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
}


TAUGHT = [  # every family with every adapter, and both with stored and with recomputed activations
    (family, *adapter, bool(number % 2)) for number, (family, adapter) in enumerate(product(FAMILIES, READ))
]


@pytest.mark.parametrize(("family", "sublearner", "placement", "checkpointing"), TAUGHT)
def test_a_training_step_teaches_the_same(family, sublearner, placement, checkpointing):
    knobs = {"train_backbone": True, "exit_dropout": 0.0, "exit_pooling": "cls", "gradient_equilibrium": checkpointing}
    adapter = {"adapter_sublearner": sublearner, "adapter_placement": placement}
    model = tiny_model(family, num_labels=3, backbone_changes=NO_DROPOUT[family], **adapter, **knobs).train()
    if checkpointing:
        getattr(model, f"{CHECKPOINTING}_enable")()
    batch, labels, steps = tiny_batch(5), torch.tensor([0, 1, 2, 1, 0]), []
    for execution in (PLAIN, Execution()):
        model.zero_grad()
        with executed(model, execution), counted(model, "up") as positions:
            loss = model(**batch, labels=labels).loss
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        steps.append((loss.detach(), gradients, sum(positions["up"])))
    (plain, expected, all_positions), (short, found, fewer) = steps
    assert fewer < all_positions or model.exits.positions(0) is None
    assert_close(short, plain, **CLOSE)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in expected.values()) > 20
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
