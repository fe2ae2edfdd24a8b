"""How far `torch.compile` reaches: full depth is one graph, early exit is several, the layer a few."""

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch._dynamo.testing import CompileCounterWithBackend

from modeling_pfberxit.model import layers as sublayers
from modeling_pfberxit.model.execution import Execution

FAMILIES = [
    "bert",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("albert", "distilbert", "deberta-v2", "modernbert")),
]
BATCH = tiny_batch(4)
LEAVE = {"criterion": "entropy", "threshold": 0.5}


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_compiles_as_one_graph(family):
    model = tiny_model(family, num_labels=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**BATCH).exit_logits, model(**BATCH).exit_logits, atol=1e-5, rtol=1e-5)


def test_early_exit_compiles_in_parts_and_answers_the_same():
    model = tiny_model("bert", num_labels=3)
    expected = model(**BATCH, exit_policy=LEAVE)
    assert expected.exit_layer.min() < 6
    found = torch.compile(model, backend="aot_eager")(**BATCH, exit_policy=LEAVE)
    assert torch.equal(found.exit_layer, expected.exit_layer)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_loss_that_reaches_the_last_exit_alone_is_refused_when_compiled_as_well():
    model = tiny_model("bert", num_labels=3, backbone_changes={"num_hidden_layers": 2}).train()
    output = torch.compile(model, backend="eager")(**BATCH, labels=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="of outputs.logits.*every exit learns from"):
        output.logits.sum().backward(retain_graph=True)
    output.loss.backward()


# ---- the layer ------------------------------------------------------------------------------------------------------

MIXED = [tiny_batch(rows, length) for rows, length in ((1, 9), (4, 12), (3, 7), (1, 3), (8, 16), (2, 5), (6, 11))]


@pytest.fixture
def graphs(monkeypatch):
    """Counts what `Execution(compiled=True)` compiles, for a backend that does not call a C++ compiler."""
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    run = torch.compile(sublayers.both_halves, dynamic=True, backend=counter)
    monkeypatch.setattr(sublayers, "compiled", lambda function: run)
    yield counter
    torch.compiler.reset()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "sublearner", "pooling"),
    [("albert", "mlp", "cls"), ("bert", "conv", "cls"), ("bert", "mlp", "mean")],
)
def test_a_handful_of_translations_serves_all_depths_and_lengths(graphs, family, sublearner, pooling):
    model = tiny_model(family, num_labels=3, exit_pooling=pooling, adapter_sublearner=sublearner)
    expected = [model(**batch, exit_policy=LEAVE) for batch in MIXED]
    assert len({depth for output in expected for depth in output.exit_layer.tolist()}) > 2
    model.execution = Execution(compiled=True, weights_in_tokens=0)
    for batch, output in zip(MIXED, expected, strict=True):
        found = model(**batch, exit_policy=LEAVE)
        assert torch.equal(found.exit_layer, output.exit_layer)
        torch.testing.assert_close(found.logits, output.logits, atol=1e-5, rtol=1e-5)
    # 6 depths, batches of one row and of more, with and without padding, one token or all.
    assert 1 <= graphs.frame_count <= 8


@pytest.mark.slow
def test_the_translation_to_machine_code_answers_the_same():
    model = tiny_model("albert", num_labels=3, exit_pooling="cls")
    expected = [model(**batch, exit_policy=LEAVE) for batch in MIXED]
    model.execution = Execution(compiled=True)
    for batch, output in zip(MIXED, expected, strict=True):
        torch.testing.assert_close(model(**batch, exit_policy=LEAVE).logits, output.logits, atol=1e-5, rtol=1e-5)
