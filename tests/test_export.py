"""What can be traced and exported: full depth, whole, for any batch, length and mask; early exit is refused by name."""

import contextlib
import io
from functools import partial

import pytest
import torch
from tiny import CONFIGS, tiny_batch, tiny_config, tiny_model
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.model import losses as labels_file
from modeling_pfberxit.model import rows as rows_file

# Traced with rows of one length, none of them padded: whatever Python decides on that would be wrong for all others.
FULL = (torch.randint(5, 100, (2, 10), generator=torch.Generator().manual_seed(0)), torch.ones(2, 10).long())
OTHERS = [
    tuple(tiny_batch(rows, longest, shortest=shortest).values())
    for rows, longest, shortest in ((5, 14, 3), (2, 10, 6), (3, 3, 1), (4, 12, 12))
]
ROWS, TOKENS = Dim("rows", min=2, max=64), Dim("tokens", min=2, max=64)
LEAVE = {"criterion": "entropy", "threshold": 0.5}
close = partial(assert_close, atol=2e-5, rtol=1e-4)
slow = pytest.mark.slow
# `torch.jit.trace` reads every property there is, those too that `transformers` is about to rename.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Call(torch.nn.Module):
    """A model's call with tokens and mask by place, as tracers want it; tensors out."""

    def __init__(self, model: torch.nn.Module, read=lambda output: output.logits, tokens: str = "input_ids", **options):
        super().__init__()
        self.model, self.read, self.tokens, self.options = model, read, tokens, options
        self.train(model.training)

    def forward(self, tokens, mask):
        return self.read(self.model(**{self.tokens: tokens}, attention_mask=mask, **self.options))


def few(family: str) -> dict[str, int]:
    """Three layers: tracers take their time for each."""
    return {"n_layers" if family == "distilbert" else "num_hidden_layers": 3}


def traced(call, example):
    with torch.no_grad():
        return torch.jit.trace(call, example, check_trace=False)


def exported(call, example, rows=ROWS, tokens=TOKENS, strict=False):
    dynamic = {0: rows, 1: tokens}
    return torch.export.export(call, example, dynamic_shapes=(dynamic, dynamic), strict=strict).module()


def runtime_of(path):
    """An ONNX file as a function of tokens and mask."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda *inputs: torch.tensor(
        session.run(None, {put.name: given.numpy() for put, given in zip(session.get_inputs(), inputs, strict=True)})[0]
    )


def onnx_file(call, example, path, dynamo: bool):
    axes = {0: ROWS, 1: TOKENS}
    shapes = {"dynamic_shapes": (axes, axes), "verbose": False}
    if not dynamo:
        axes = {0: "rows", 1: "tokens"}
        shapes = {"dynamic_axes": {"tokens": axes, "mask": axes}, "opset_version": 18}
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(call, example, path, dynamo=dynamo, input_names=["tokens", "mask"], **shapes)
    return runtime_of(path)


# ---- against the stock encoder --------------------------------------------------------------------------------------


def stock_and_ours(family: str):
    """A stock encoder, and a fresh model on its weights: adapters that add nothing, a head on the mean over tokens."""
    torch.manual_seed(0)
    model = tiny_model(family, liven=False, num_labels=3, backbone_changes=few(family))
    stock = AutoModel.from_config(tiny_config(family, **few(family))).eval()
    model.backbone.load_state_dict(stock.state_dict(), strict=False)
    head = model.exits.classifiers[-1]
    torch.nn.init.normal_(head.weight)

    @torch.no_grad()
    def answer(ids, mask):
        states, shares = stock(input_ids=ids, attention_mask=mask).last_hidden_state, mask / mask.sum(1, keepdim=True)
        return head((shares[..., None] * states).sum(1))

    return answer, model


@pytest.mark.parametrize("family", CONFIGS)
def test_a_trace_answers_as_the_stock_encoder_does_whatever_it_was_traced_with(family):
    stock, model = stock_and_ours(family)
    recorded = traced(Call(model), FULL)
    for other in OTHERS:
        close(recorded(*other), stock(*other))


@pytest.mark.parametrize("family", ["albert", pytest.param("bert", marks=slow)])
def test_an_exported_program_answers_as_the_stock_encoder_does_for_any_batch_and_length(family):
    stock, model = stock_and_ours(family)
    program = exported(Call(model), FULL)
    for other in OTHERS:
        close(program(*other), stock(*other))


@pytest.mark.parametrize("dynamo", [pytest.param(True, id="dynamo", marks=slow), pytest.param(False, id="legacy")])
def test_an_onnx_file_answers_as_the_stock_encoder_does_for_any_batch_and_length(dynamo, tmp_path):
    pytest.importorskip("onnxscript" if dynamo else "onnx")
    stock, model = stock_and_ours("bert")
    run = onnx_file(Call(model), FULL, tmp_path / "model.onnx", dynamo)
    for other in OTHERS:
        close(run(*other), stock(*other))


# ---- whatever the model is made of ----------------------------------------------------------------------------------


def prompts(kind: str) -> dict:
    return {"prompt_generator": kind, "prompt_layer": 1, "prompt_length": 3, "prompt_dim": 8}


CONV, ATTENTION, CLS = {"adapter_sublearner": "conv"}, {"adapter_sublearner": "self_attention"}, {"exit_pooling": "cls"}
MODELS = {
    "one token": ("albert", CLS),
    "conv": ("distilbert", CONV),
    "conv, one token": ("bert", {**CONV, **CLS, "adapter_placement": "both"}),
    "conv in sequence, one token": ("bert", {**CONV, **CLS, "adapter_placement": "sequential"}),
    "self-attention": ("electra", ATTENTION),
    "self-attention, one token": ("roberta", {**ATTENTION, **CLS, "adapter_placement": "both"}),
    "bypass, one token": ("bert", {**CONV, **CLS, "adapter_placement": "bypass"}),
    "poolers": ("bert", {**CLS, "exit_pooler": "backbone"}),
    "LTE and prototypes": ("bert", {"use_lte": True, "use_prototypes": True, "exit_layers": [1, 3]}),
    "a table of prompts": ("bert", prompts("table")),
    "prompts of a row's first token": ("bert", prompts("npg")),
    "prompts of a row's tokens": ("albert", prompts("mppg")),
    "hashed tokens": ("bert", {"token_exits": True, "adapter_placement": "none"}),
}


def made_of(name: str) -> PFBerxitForSequenceClassification:
    family, knobs = MODELS[name]
    model = tiny_model(family, num_labels=3, backbone_changes=few(family), **knobs)
    if model.token_exits is not None:
        model.token_exits.depths.random_(0, 4, generator=torch.Generator().manual_seed(1))
    return model


def everything(output):
    parts = (output.logits, output.exit_layer, output.exit_logits, output.exit_lte, output.exit_distances)
    return tuple(part for part in parts if part is not None)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_trace_holds_for_other_batches_whatever_the_model_is_made_of(name):
    call = Call(made_of(name), everything)
    recorded = traced(call, FULL)
    for other in OTHERS:
        for found, expected in zip(recorded(*other), call(*other), strict=True):
            close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("conv, one token", {}),
        ("prompts of a row's tokens", {"rows": Dim.AUTO, "tokens": Dim.AUTO}),
        ("hashed tokens", {"rows": Dim.DYNAMIC, "tokens": Dim.DYNAMIC}),
        pytest.param("self-attention, one token", {}, marks=slow),
        # the stricter way makes a program that holds from one token more than the adapter beside the exit reads
        pytest.param("bypass, one token", {"strict": True, "tokens": Dim("tokens", min=3, max=64)}, marks=slow),
    ],
)
def test_an_exported_program_holds_for_other_batches_whatever_the_model_is_made_of(name, dims):
    call = Call(made_of(name), everything)
    program = exported(call, FULL, **dims)
    for other in OTHERS:
        for found, expected in zip(program(*other), call(*other), strict=True):
            close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["conv, one token", "self-attention, one token", "prompts of a row's tokens"])
def test_an_onnx_file_of_the_older_exporter_holds_for_other_batches_too(name, tmp_path):
    pytest.importorskip("onnx")
    call = Call(made_of(name))
    run = onnx_file(call, FULL, tmp_path / "model.onnx", dynamo=False)
    for other in OTHERS:
        close(run(*other), call(*other))


CALLS = {
    "embeddings": (lambda model: Call(model, tokens="inputs_embeds"), lambda ids: torch.randn(*ids.shape, 32)),
    "states": (lambda model: Call(model, lambda o: (o.logits, *o.hidden_states), output_hidden_states=True), None),
    "the model without its exits": (lambda model: Call(model.base_model, lambda o: (o.last_hidden_state,)), None),
    "attentions": (lambda model: Call(model, lambda o: (o.logits, *o.attentions), output_attentions=True), None),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CALLS)
def test_a_trace_holds_for_other_batches_whatever_is_given_and_asked_for(name):
    make, tokens = CALLS[name]
    model = tiny_model("bert", num_labels=3)
    model.set_attn_implementation("eager" if name == "attentions" else "sdpa")
    call, (full, *others) = make(model), [(tokens(ids) if tokens else ids, mask) for ids, mask in (FULL, *OTHERS)]
    recorded = traced(call, full)
    for other in others:
        for found, expected in zip(recorded(*other), call(*other), strict=True):
            close(found, expected)


@torch.no_grad()
def test_a_trace_of_a_model_itself_gives_its_outputs_by_name():
    model = tiny_model("bert", num_labels=3).bfloat16()
    recorded = torch.jit.trace(model, FULL, strict=False)
    for other in OTHERS:
        assert_close(recorded(*other)["logits"], model(*other).logits, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_a_row_padded_on_the_left_is_nan_where_its_mask_cannot_be_read():
    model = tiny_model("bert", num_labels=3)
    ids, mask = OTHERS[0]
    left = mask.clone()
    left[1, 0] = 0
    with pytest.raises(ValueError, match="attention_mask.*pad on the right"):
        model(ids, left)
    found, expected = traced(Call(model), FULL)(ids, left), model(ids, mask).logits
    assert found[1].isnan().all()
    close(found[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])


# ---- early exit -----------------------------------------------------------------------------------------------------


def messages(error: BaseException | None) -> str:
    """An error's text and that of those it came from."""
    return "" if error is None else f"{error} {messages(error.__cause__ or error.__context__)}"


WAYS = {
    "jit.trace": traced,
    "export": torch.export.export,
    "export, strict": partial(torch.export.export, strict=True),
    "make_fx": lambda call, example: make_fx(call)(*example),
    "meta": lambda call, example: call.to("meta")(*(part.to("meta") for part in example)),
}


@pytest.mark.parametrize("way", WAYS)
def test_early_exit_cannot_be_recorded_and_says_so(way):
    call = Call(tiny_model("bert", num_labels=3), exit_policy=LEAVE)
    with pytest.raises(Exception) as refusal:
        WAYS[way](call, FULL)
    assert "exit_criterion='entropy': must be None" in messages(refusal.value)


@pytest.mark.parametrize("way", ["jit.trace", "export", "meta"])
def test_predict_cannot_be_recorded_and_says_so(way):
    class Predict(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = tiny_model("bert")

        def forward(self, ids, mask):
            return self.model.predict([{"input_ids": ids[0]}], progress=False).logits

    with pytest.raises(ValueError, match="predict=.*outside torch.jit.trace and torch.export"):
        WAYS[way](Predict().eval(), FULL)


# ---- tensors without values, values that cost a wait ----------------------------------------------------------------

KINDS = {
    "plain": {},
    "LTE and prototypes": {"use_lte": True, "use_prototypes": True, "problem_type": "single_label_classification"},
    "hashed tokens": {"token_exits": True, "adapter_placement": "none"},
    "prompts": prompts("mppg"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_values_runs_and_trains(kind):
    model = tiny_model("bert", num_labels=3, **KINDS[kind]).to("meta")
    batch = {name: values.to("meta") for name, values in tiny_batch(4).items()}
    assert model(**batch).exit_logits.shape == (4, 6, 3)
    loss = model.train()(**batch, labels=torch.zeros(4, dtype=torch.long, device="meta")).loss
    loss.backward()
    assert loss.is_meta and model.exits.classifiers[0].weight.grad.is_meta


@pytest.mark.parametrize("way", ["fake", "flops", "make_fx"])
def test_tools_that_only_look_on_can(way):
    model, (ids, mask) = tiny_model("bert", num_labels=3), OTHERS[0]
    if way == "flops":
        with FlopCounterMode(display=False) as counter:
            model(ids, mask)
        assert counter.get_total_flops() > 0
    elif way == "fake":
        with torch._subclasses.FakeTensorMode() as mode:
            fake = PFBerxitForSequenceClassification(model.config).eval()
            assert fake(mode.from_tensor(ids), mode.from_tensor(mask)).logits.shape == (5, 3)
    else:
        graph = make_fx(Call(model))(ids, torch.ones_like(mask))
        close(graph(ids, mask), model(ids, mask).logits)


class Reads(TorchDispatchMode):
    """Refuses what waits for an accelerator: a value that Python asks for, a size that depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["plain", "LTE and prototypes", "prompts"])
def test_at_full_depth_and_in_training_no_value_on_an_accelerator_is_read(kind, monkeypatch):
    model, batch, labels = tiny_model("bert", num_labels=3, **KINDS[kind]), tiny_batch(4), torch.tensor([0, 1, 2, -100])
    expected = model(**batch).logits
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Reads():  # the CPU's are: that is cheap
        model(**batch)
    for file in (rows_file, labels_file):
        monkeypatch.setattr(file, "is_readable", lambda tensor: False)
    with Reads():
        found = model(**batch).logits
        model.train()(**batch, labels=labels).loss.backward()
    close(found, expected)
