"""Streams: `model.predict` answers any number of rows as if each were alone, in full batches and bounded memory."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_criteria_promises import OUTPUTS as LABELS
from test_criteria_promises import RULES, generous, in_turn, setting
from test_threads import inside
from test_threads import same as unchanged
from test_token_first import EAGER, PLAIN, alone, counted, executed, same
from tiny import VOCABULARY, rows_of, tiny_batch, tiny_model
from torch.testing import assert_close
from transformers import BatchEncoding
from transformers.utils import logging

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.replay import replay
from modeling_pfberxit.model import execution, streams
from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.model.evidence import SINGLE_LABEL, Evidence, ExitState
from modeling_pfberxit.model.execution import Execution
from modeling_pfberxit.model.loop import Loop
from modeling_pfberxit.model.rows import CallRecord, Rows, unless_full
from modeling_pfberxit.model.streams import Stream

ROWS = 33
HUNGRY, FED = Execution(weights_in_tokens=1e6), EAGER  # only full batches run; any does
GROUPS = {"num_hidden_groups": 3, "inner_group_num": 1}
CONV, HASHED = {"adapter_sublearner": "conv"}, {"token_exits": True, "adapter_placement": "none"}


def prompts(kind: str, layer: int) -> dict:
    return {"prompt_generator": kind, "prompt_layer": layer, "prompt_length": 3, "prompt_dim": 8}


MODELS = {
    "albert": ("albert", CONV),
    "albert, cls": ("albert", {**CONV, "exit_pooling": "cls", "adapter_placement": "both"}),
    "albert, bypass": ("albert", {**CONV, "exit_pooling": "cls", "adapter_placement": "bypass"}),
    "albert, self-attention": ("albert", {"adapter_sublearner": "self_attention", "exit_pooling": "cls"}),
    "albert, sequential": ("albert", {**CONV, "adapter_placement": "sequential"}),
    "albert, some exits": ("albert", {"exit_layers": [2, 5, 6]}),
    "albert, some exits, cls": ("albert", {"exit_layers": [2, 5, 6], "exit_pooling": "cls"}),
    "albert, three groups": ("albert", {"backbone_changes": GROUPS}),
    "albert, three groups, cls": ("albert", {"backbone_changes": GROUPS, "exit_pooling": "cls"}),
    "albert, inner groups": ("albert-groups", {}),
    "albert, one inner group": ("albert-groups", {"backbone_changes": {"num_hidden_groups": 1}, "exit_pooling": "cls"}),
    "albert, inner groups, some exits, cls": ("albert-groups", {"exit_layers": [2, 5, 6, 9], "exit_pooling": "cls"}),
    "albert, prompts at once": ("albert", prompts("table", 0)),
    "albert, prompts": ("albert", prompts("appg", 3)),
    "albert, prompts, cls": ("albert", {**prompts("npg", 3), "exit_pooling": "cls"}),
    "albert, inner groups, prompts": ("albert-groups", prompts("mppg", 5)),
    "albert, hashed": ("albert", HASHED),
    "albert, eager": ("albert", {"attn_implementation": "eager"}),
    "bert": ("bert", CONV),
    "bert, cls": ("bert", {**CONV, "exit_pooling": "cls", "adapter_placement": "both"}),
    "bert, some exits": ("bert", {"exit_layers": [2, 5, 6], "exit_pooling": "cls"}),
    "bert, prompts": ("bert", prompts("mppg", 2)),
    "bert, hashed, cls": ("bert", {**HASHED, "exit_pooling": "cls"}),
    "roberta": ("roberta", {"backbone_changes": {"pad_token_id": 1, "max_position_embeddings": 90}}),
    "distilbert, cls": ("distilbert", {"exit_pooling": "cls"}),
    "electra": ("electra", {"adapter_placement": "none", "exit_pooler": "own"}),
    "deberta, cls": ("deberta-v2", {**CONV, "exit_pooling": "cls", "adapter_placement": "both"}),
    "deberta, prompts": ("deberta-v2", {**prompts("mppg", 2), "backbone_changes": {"conv_kernel_size": 3}}),
    "deberta, hashed, cls": ("deberta-v2", {**HASHED, "exit_pooling": "cls"}),
}


@cache
@torch.no_grad()
def served(name: str, problem: str = SINGLE_LABEL, **knobs) -> PFBerxitForSequenceClassification:
    """A model by its name above, whose rows part."""
    family, own = MODELS[name]
    knobs = {**own, "num_labels": LABELS[problem], "problem_type": problem, **knobs}
    implementation = knobs.pop("attn_implementation", "sdpa")
    model = tiny_model(family, seed=2, **knobs)
    model.set_attn_implementation(implementation)
    model.backbone.embeddings.word_embeddings.weight.mul_(30)
    if model.token_exits is not None:
        model.token_exits.depths.random_(0, len(model.depths) + 1, generator=torch.Generator().manual_seed(1))
    said = model(**tiny_batch(60, seed=9))
    for number, classifier in enumerate(model.exits.classifiers):
        classifier.bias -= said.exit_logits[:, number].mean(0)
    for number, lte in enumerate(model.exits.ltes):
        lte.bias -= said.exit_lte[:, number].logit().mean()
    return model


def sentences(rows: int = ROWS, longest: int = 16, seed: int = 0, shortest: int = 1) -> list[dict[str, torch.Tensor]]:
    """Rows of mixed length, without padding."""
    return [{"input_ids": ids} for ids in rows_of(tiny_batch(rows, longest, seed, shortest))]


@cache
def evidence_of(name: str, problem: str = SINGLE_LABEL, **knobs) -> Evidence:
    return alone(served(name, problem, **knobs), sentences())


def expected_of(name: str, policy: ExitPolicy, problem: str = SINGLE_LABEL, **knobs):
    """What each of the rows would be told alone, and where."""
    return replay(evidence_of(name, problem, **knobs), policy, served(name, problem, **knobs).exit_depths, problem)


def predict(model, rows, policy, size: int = 4, short_cuts: Execution | None = None):
    with executed(model, short_cuts or Execution()):
        output = model.predict(rows, policy, size, progress=False)
    return output.logits, output.exit_layer


# ---- the answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_answers_every_row_as_if_it_were_alone(name, monkeypatch):
    model, rows = served(name), sentences()
    policy = setting("entropy", SINGLE_LABEL, evidence_of(name))
    expected = expected_of(name, policy)
    assert len(set(expected[1].tolist())) >= min(3, len(model.exit_depths))
    same(predict(model, rows, policy, 1), expected)
    same(predict(model, rows, policy, 32), expected)
    same(predict(model, rows, policy, 4, FED), expected)
    same(predict(model, rows, policy, 4, PLAIN), expected)
    same(predict(model, rows, policy, 7, HUNGRY), expected)
    monkeypatch.setattr(streams, "WINDOW", 2)  # four or five windows, each sorted by itself
    same(predict(model, rows, policy, 4, HUNGRY), expected)


def emitting(name: str) -> dict[str, bool]:
    needed = CRITERIA[RULES[name]["criterion"]].needs_evidence
    return {needed: True, "lte_shared": False} if needed else {}


@pytest.mark.parametrize(("problem", "name", "model_name"), in_turn("albert, cls", "bert"))
def test_a_stream_follows_every_rule(problem, name, model_name):
    model = served(model_name, problem, **emitting(name))
    evidence = evidence_of(model_name, problem, **emitting(name))
    policy = setting(name, problem, evidence)
    expected = expected_of(model_name, policy, problem, **emitting(name))
    assert len(set(expected[1].tolist())) >= (1 if name == "appointed" else 3)
    same(predict(model, sentences(), policy, 4, HUNGRY), expected)


@pytest.mark.parametrize("name", ["albert", "albert, three groups", "bert, some exits", "bert, hashed, cls"])
def test_without_a_policy_a_stream_runs_to_the_last_layer_and_asks_the_last_exit_alone(name):
    model, asked = served(name), []
    hooks = [exit.register_forward_hook(lambda *_: asked.append("inner")) for exit in model.exits.classifiers[:-1]]
    logits, layers = predict(model, sentences(), None)
    for hook in hooks:
        hook.remove()
    assert layers.tolist() == [len(model.depths)] * ROWS and not asked
    assert_close(logits, evidence_of(name).logits[:, -1], atol=2e-5, rtol=1e-4)


def test_thresholds_of_single_exits_stay_with_them_in_a_stream():
    for name in ("albert", "albert, some exits", "bert, some exits"):
        tau = setting("entropy", SINGLE_LABEL, evidence_of(name)).threshold
        taus = (0.0, 1.1 * tau, 0.6 * tau, tau, 1.4 * tau, 0.9 * tau)[-len(served(name).exit_depths) :]
        for policy in (ExitPolicy("entropy", threshold=taus), ExitPolicy("entropy", threshold=taus, min_layer=3)):
            same(predict(served(name), sentences(), policy, 4, HUNGRY), expected_of(name, policy))


def test_an_operating_point_and_the_config_s_policy_are_known_to_streams():
    model = tiny_model("bert", num_labels=3, exit_criterion="appointed", exit_appointed_layer=4)
    model.config.operating_points = {"quick": {"criterion": "appointed", "appointed_layer": 2, "accuracy": 0.9}}
    rows = sentences(5)
    for policy, layer in ((None, 4), ("quick", 2), ({"appointed_layer": 3}, 3), (ExitPolicy(), 6)):
        assert model.predict(rows, policy, progress=False).exit_layer.tolist() == [layer] * 5
        assert model(**{"input_ids": rows[0]["input_ids"][None]}, exit_policy=policy).exit_layer.tolist() == [layer]


# ---- where rows come from -------------------------------------------------------------------------------------------


def padded(rows: list[dict[str, torch.Tensor]], left: bool = False) -> list[dict[str, torch.Tensor]]:
    """Rows with padding and a mask, as tokenisers give them."""
    longer = []
    for number, row in enumerate(rows):
        widths = (number % 5, 0) if left else (0, number % 5)
        values = {**row, "attention_mask": torch.ones_like(row["input_ids"])}
        longer.append({name: torch.nn.functional.pad(part, widths) for name, part in values.items()})
    return longer


def as_lists(rows: list[dict[str, torch.Tensor]]) -> list[dict[str, list[int]]]:
    return [{name: values.tolist() for name, values in row.items()} for row in rows]


SOURCES = {
    "lists": as_lists,
    "arrays": lambda rows: [{name: np.array(values) for name, values in row.items()} for row in as_lists(rows)],
    "half-sized arrays": lambda rows: [
        {name: np.array(values, dtype=np.int32) for name, values in row.items()} for row in as_lists(rows)
    ],
    "encodings": lambda rows: [BatchEncoding(row) for row in as_lists(rows)],
    "a tuple": tuple,
    "a generator": lambda rows: (row for row in rows),
    "a data set": lambda rows: Dataset.from_list(as_lists(rows)),
    "a data set of tensors": lambda rows: Dataset.from_list(as_lists(rows)).with_format("torch"),
    "a data set as a stream": lambda rows: Dataset.from_list(as_lists(rows)).to_iterable_dataset(),
    "with labels": lambda rows: [{**row, "labels": 1, "text": "a b"} for row in rows],
    "padded": padded,
    "padded on the left": lambda rows: padded(rows, left=True),
    "a padded data set": lambda rows: Dataset.from_list(as_lists(padded(rows))),
    "padded in part": lambda rows: [*padded(rows[:20]), *rows[20:]],
}


@pytest.mark.parametrize("types", [False, True], ids=["", "with types"])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_rows_may_come_from_anywhere(source, types, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 2)
    model, rows = served("bert"), sentences()
    if types:
        rows = [{**row, "token_type_ids": (torch.arange(len(row["input_ids"])) > 2).long()} for row in rows]
    policy = setting("entropy", SINGLE_LABEL, evidence_of("bert"))
    recorded = alone(model, rows) if types else evidence_of("bert")
    same(predict(model, source(rows), policy), replay(recorded, policy, model.exit_depths, SINGLE_LABEL))
    assert not types or not torch.allclose(recorded.logits[5], evidence_of("bert").logits[5], atol=1e-2)


@pytest.mark.parametrize("first", [0, 1], ids=["without first", "with first"])
def test_rows_with_token_types_may_stand_among_rows_without(first):
    """Tokens without a type are of the first one, as the encoder has it."""
    model, rows = served("bert"), sentences(12, longest=9, shortest=9)
    for row in rows[1 - first :: 2]:
        row["token_type_ids"] = (torch.arange(9) > 2).long()
    policy = ExitPolicy("appointed", appointed_layer=4)
    expected = replay(alone(model, rows), policy, model.exit_depths, SINGLE_LABEL)
    same(predict(model, rows, policy, 12), expected)


def test_the_rows_given_are_not_changed():
    rows = padded(sentences(9))
    before = [{name: values.clone() for name, values in row.items()} for row in rows]
    predict(served("bert"), rows, None)
    for row, kept in zip(rows, before, strict=True):
        assert row.keys() == kept.keys() and all(torch.equal(row[name], kept[name]) for name in row)


# ---- how they share batches -----------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch):
    """What goes through each layer in streams: groups of rows, rows' numbers, padded length."""
    taken = []

    class Spied(Loop):
        def step(self, rows):
            taken.append((rows.groups, rows.index.tolist(), rows.hidden_states.shape[1]))
            return super().step(rows)

    monkeypatch.setattr(PFBerxitForSequenceClassification, "new_loop", Spied)
    return taken


@pytest.fixture
def waiting(monkeypatch):
    """How many rows are queued, each time that some join."""
    sizes, enqueue = [], Stream.enqueue

    def spy(stream, rows):
        enqueue(stream, rows)
        sizes.append(sum(len(rows) for queue in stream.queues.values() for rows in queue))

    monkeypatch.setattr(Stream, "enqueue", spy)
    return sizes


def test_rows_of_different_depths_share_a_batch_where_depths_share_a_layer(steps):
    policy = setting("entropy", SINGLE_LABEL, evidence_of("albert"))
    predict(served("albert"), sentences(), policy, 8, HUNGRY)
    assert max(len(groups) for groups, _, _ in steps) >= 3
    for groups, index, _ in steps:
        assert sum(size for _, size in groups) == len(index)
    steps.clear()
    policy = setting("entropy", SINGLE_LABEL, evidence_of("bert"))
    predict(served("bert"), sentences(), policy, 8, HUNGRY)
    assert {len(groups) for groups, _, _ in steps} == {1}


@pytest.mark.parametrize("name", ["albert, three groups", "albert, inner groups", "albert, prompts"])
def test_rows_share_a_batch_only_where_what_comes_next_is_the_same_for_all(name, steps):
    policy = setting("entropy", SINGLE_LABEL, evidence_of(name))
    model = served(name)
    loop = Loop(model, CallRecord(), policy, None, SINGLE_LABEL)
    predict(model, sentences(90), policy, 8, HUNGRY)
    assert max(len(groups) for groups, _, _ in steps) >= 2
    for groups, _, _ in steps:
        depths = [depth for depth, _ in groups]
        assert len({id(loop.layers[depth]) for depth in depths}) == 1
        assert model.prompts is None or len({(depth > 3) - (depth < 3) for depth in depths}) == 1


def marked(numbers: list[int], groups: tuple[tuple[int, int], ...], longest: int) -> Rows:
    """Rows whose number is written into all that belongs to them; as long as their number, mostly."""
    index = torch.tensor(numbers)
    mask = (torch.arange(longest) < index[:, None].clamp(max=longest)).long()
    state = ExitState(index[:, None, None, None].float(), index, 10 * index, SINGLE_LABEL)
    states = index[:, None, None].expand(-1, longest, 2) * mask[..., None].float()
    return Rows(None, index, states, unless_full(mask), state, groups=groups, exited=index % 2 == 1)


def test_what_belongs_to_a_row_stays_with_it_when_batches_are_merged_and_split():
    parts = [
        marked([9, 4, 7], ((6, 1), (2, 2)), 9),
        marked([3, 3, 3], ((2, 3),), 3),  # without padding
        marked([8, 5, 1], ((4, 2), (2, 1)), 8),
    ]
    depths = {9: 6, 8: 4, 5: 4, 4: 2, 7: 2, 3: 2, 1: 2}
    whole = Rows.cat(parts)
    assert whole.groups == ((6, 1), (4, 2), (2, 6)) and whole.hidden_states.shape == (9, 9, 2)
    left, right = whole.split(2)
    assert left.groups == ((6, 1), (4, 1)) and right.groups == ((4, 1), (2, 6))
    few = right.select(torch.tensor([0, 3, 4, 6]))
    assert [len(rows) for rows in (left, right, few)] == [2, 7, 4]
    for rows in (whole, left, right, few):
        assert sorted(rows.depths().tolist(), reverse=True) == rows.depths().tolist()
        assert rows.depths().tolist() == [depths[number] for number in rows.index.tolist()]
        assert rows.hidden_states.shape[1] == rows.index.max()
        assert torch.equal(rows.hidden_states[:, 0, 0].long(), rows.index)
        assert torch.equal(rows.mask().sum(1).long(), rows.index)
        assert torch.equal((rows.hidden_states[..., 0] > 0).sum(1), rows.index)
        assert torch.equal(rows.state.past.flatten().long(), rows.index)
        assert torch.equal(rows.state.seen, rows.index) and torch.equal(rows.state.count, 10 * rows.index)
        assert torch.equal(rows.exited, rows.index % 2 == 1)
    assert Rows.cat([left, right]).index.tolist() == whole.index.tolist()


def test_rows_of_different_batches_go_on_together(steps, monkeypatch):
    batches, admit = [], Stream.admit

    def spy(stream, rows, index):
        batches.append(set(index.tolist()))
        admit(stream, rows, index)

    monkeypatch.setattr(Stream, "admit", spy)
    policy = setting("entropy", SINGLE_LABEL, evidence_of("bert"))
    predict(served("bert"), sentences(), policy, 8, HUNGRY)
    assert sorted(map(len, batches)) == [1, 8, 8, 8, 8]
    merged = [index for _, index, _ in steps if not any(batch.issuperset(index) for batch in batches)]
    assert len(merged) >= 3


@pytest.mark.parametrize("name", ["albert", "albert, cls", "albert, three groups", "bert", "bert, prompts"])
def test_batches_stay_full_while_rows_come_in(name, steps, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 1)
    read = []

    def coming():
        for row in sentences(80):
            read.append(len(steps))
            yield row

    predict(served(name), coming(), setting("entropy", SINGLE_LABEL, evidence_of(name)), 8, HUNGRY)
    early = steps[: read[-1]]
    assert len(early) > 10 and {len(index) for _, index, _ in early} == {8}


@pytest.mark.parametrize("name", ["albert", "bert"])
def test_a_full_batch_waits_for_nobody(name, steps, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 1)
    read = []

    def coming():
        for row in sentences(24):
            read.append(len(steps))
            yield row

    predict(served(name), coming(), ExitPolicy("appointed", appointed_layer=5), 8, HUNGRY)
    assert read == [0] * 8 + [5] * 8 + [10] * 8 and len(steps) == 15


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize("name", ["albert", "albert, some exits", "bert"])
def test_no_batch_is_larger_than_asked_for_or_than_fits_the_caches(name, size, steps, monkeypatch):
    monkeypatch.setattr(execution, "MOST_TOKENS", {"cpu": 100})
    predict(served(name), sentences(), setting("entropy", SINGLE_LABEL, evidence_of(name)), size, HUNGRY)
    assert all(len(index) <= size and len(index) * longest <= 100 for _, index, longest in steps)
    assert max(len(index) for _, index, _ in steps) >= min(size, 6)


@pytest.mark.parametrize("short_cuts", [None, HUNGRY], ids=["", "hungry"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["albert", "bert"])
def test_short_rows_and_long_ones_may_come_in_any_mixture(name, seed, short_cuts, monkeypatch):
    monkeypatch.setattr(execution, "MOST_TOKENS", {"cpu": 64})
    monkeypatch.setattr(streams, "WINDOW", 1)
    model, mixture = served(name), np.random.default_rng(seed).permutation(40)
    rows = [*sentences(30, longest=3, seed=seed), *sentences(10, longest=60, shortest=20, seed=seed)]
    rows = [rows[number] for number in mixture]
    policy = setting("entropy", SINGLE_LABEL, evidence_of(name))
    same(
        predict(model, rows, policy, 16, short_cuts),
        replay(alone(model, rows), policy, model.exit_depths, SINGLE_LABEL),
    )


def test_long_rows_may_arrive_where_many_short_ones_wait():
    model, policy = served("bert"), ExitPolicy("appointed", appointed_layer=6)
    rows = [*sentences(31, longest=3, seed=1), *sentences(3, longest=80, shortest=70, seed=1)]
    stream = Stream(model, policy, SINGLE_LABEL, 32)
    stream.admit(rows[:31], torch.arange(31))
    stream.drain()
    stream.admit(rows[31:], torch.arange(31, 34))
    stream.drain()
    stream.drain(last=True)
    same(stream.record.collect(), replay(alone(model, rows), policy, model.exit_depths, SINGLE_LABEL))


@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("name", ["albert", "albert, inner groups", "albert, prompts", "bert", "bert, hashed, cls"])
def test_few_rows_wait_however_many_come(name, size, waiting):
    model, policy = served(name), setting("entropy", SINGLE_LABEL, evidence_of(name))
    predict(model, sentences(90), policy, size, HUNGRY)
    assert max(waiting) <= len(model.depths) * size + size
    waiting.clear()
    predict(model, sentences(40), policy, size, FED)
    assert max(waiting) <= size  # whoever waits is fed at once


@pytest.mark.parametrize("name", ["albert", "bert"])
def test_rows_are_read_window_by_window(name, monkeypatch):
    monkeypatch.setattr(streams, "WINDOW", 2)
    size, read, answered, answer = 4, 0, 0, CallRecord.answer
    ahead = []

    def spy(walk, index, logits, layers):
        nonlocal answered
        answered += len(index)
        answer(walk, index, logits, layers)

    def endless():
        nonlocal read
        for number in count():
            if number == 150:
                return
            read += 1
            ahead.append(read - answered)
            yield {"input_ids": [5 + number % 100, *range(7, 8 + number % 9)]}

    model, policy = served(name), setting("entropy", SINGLE_LABEL, evidence_of(name))
    monkeypatch.setattr(CallRecord, "answer", spy)
    _, layers = predict(model, endless(), policy, size, HUNGRY)
    assert len(layers) == answered == read == 150
    assert max(ahead) <= size * 2 + len(model.depths) * size + size


# ---- what is refused ------------------------------------------------------------------------------------------------

ROW = {"input_ids": [5, 6, 7]}
REFUSED = {
    "nothing": ({"rows": []}, "rows="),
    "nothing to come": ({"rows": iter(())}, "rows="),
    "a batch as a row": ({"rows": [{"input_ids": [[5, 6], [7, 8]]}]}, "rows[0].input_ids="),
    "a batch": ({"rows": {"input_ids": torch.ones(2, 3, dtype=torch.long)}}, "rows[0]='str'"),
    "a number as a row": ({"rows": [{"input_ids": 5}]}, "rows[0].input_ids="),
    "a row without tokens": ({"rows": [ROW, {"input_ids": []}]}, "rows[1].input_ids='0 tokens'"),
    "a row without input_ids": ({"rows": [ROW, {"attention_mask": [1, 1]}]}, "rows[1]=["),
    "tokens alone": ({"rows": [[5, 6, 7]]}, "rows[0]='list'"),
    "texts": ({"rows": ["a text"]}, "rows[0]='str'"),
    "a row of padding": ({"rows": [{**ROW, "attention_mask": [0, 0, 0]}]}, "rows[0].attention_mask="),
    "a row of padding among others": ({"rows": [ROW, {**ROW, "attention_mask": [0, 0, 0]}]}, "rows[1].attention_mask="),
    "a hole in a row": ({"rows": [ROW, {**ROW, "attention_mask": [1, 0, 1]}]}, "rows[1].attention_mask="),
    "no input_ids": ({"rows": [{**ROW, "input_ids": None}]}, "rows[0]=["),
    "a mask of another length": ({"rows": [{**ROW, "attention_mask": [1, 1]}]}, "rows[0].attention_mask='2 values'"),
    "places of its own": ({"rows": [{**ROW, "position_ids": [3, 4, 5]}]}, "rows[0].position_ids="),
    "types of another length": ({"rows": [{**ROW, "token_type_ids": [0, 0]}]}, "rows[0].token_type_ids='2 values'"),
    **{f"{size!r} rows at once": ({"batch_size": size}, "batch_size=") for size in (0, -3, 2.5, True, None, "4")},
    "a long row": ({"rows": [ROW, {"input_ids": [5] * 81}]}, "rows[1].input_ids='81 tokens': must be 1 to 80 tokens"),
    "an id out of the vocabulary": ({"rows": [ROW, ROW, {"input_ids": [5, VOCABULARY]}]}, "rows[2].input_ids=120"),
    "a negative id": ({"rows": [ROW, {"input_ids": [5, -1]}]}, "rows[1].input_ids=-1"),
    "half an id": ({"rows": [ROW, {"input_ids": [5.0, 6.5]}]}, "rows[1].input_ids='torch.float32'"),
    "ids as texts": ({"rows": [ROW, {"input_ids": ["5", "6"]}]}, "rows[1].input_ids='list'"),
    "a type the encoder does not know": ({"rows": [{**ROW, "token_type_ids": [0, 1, 2]}]}, "rows[0].token_type_ids=2"),
    "types of half a token": ({"rows": [{**ROW, "token_type_ids": [0, 0.5, 1]}]}, "rows[0].token_type_ids="),
    "a row that looks like a tensor's": ({"rows": torch.ones(2, 3, dtype=torch.long)}, "rows[0]='Tensor'"),
    "an unknown policy": ({"exit_policy": "quick"}, "exit_policy="),
    "an unknown field": ({"exit_policy": {"tau": 0.5}}, "exit_policy="),
    "an unknown rule": ({"exit_policy": {"criterion": "luck"}}, "criterion="),
    "too much patience": ({"exit_policy": {"criterion": "patience", "patience": 9}}, "exit_patience="),
    "a rule without its evidence": ({"exit_policy": ExitPolicy("lte", threshold=0.5)}, "exit_criterion="),
}


@pytest.mark.parametrize(("call", "start"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_answered_is_refused_in_one_line_before_any_layer_runs(call, start):
    model = served("bert")
    with counted(model, "key") as positions, pytest.raises(ValueError) as refusal:
        model.predict(**{"rows": [ROW], "progress": False, **call})
    message = str(refusal.value)
    assert message.startswith(start) and "must be" in message and "\n" not in message
    assert sum(positions["key"]) == 0


FAR = 3 * 64 * 4 + 7  # three windows on


def bad_at(number: int, rows: list) -> list:
    return [*rows[:number], {"input_ids": [5] * 200}, *rows[number:]]


def test_a_row_that_cannot_be_read_is_found_before_any_is_run():
    model, rows = served("bert"), as_lists(sentences(40)) * 20
    for source in (list, tuple, Dataset.from_list):
        with counted(model, "key") as positions, pytest.raises(ValueError, match=f"rows.{FAR}.*200 tokens") as refusal:
            model.predict(source(bad_at(FAR, rows)), progress=False)
        assert refusal.value.row == FAR and refusal.value.logits is None and sum(positions["key"]) == 0


@pytest.mark.parametrize("number", [0, 5, FAR])
def test_what_an_iterator_gave_before_a_row_that_cannot_be_read_is_answered(number):
    """No answer is lost, and the iterator goes on behind that row."""
    model, policy = served("bert"), setting("entropy", SINGLE_LABEL, evidence_of("bert"))
    rows = (as_lists(sentences(40)) * 20)[: FAR + 9]
    expected, coming = predict(model, rows, policy), iter(bad_at(number, rows))
    with pytest.raises(ValueError, match=f"rows.{number}..input_ids='200 tokens'") as refusal:
        predict(model, coming, policy)
    if number:
        same((refusal.value.logits, refusal.value.exit_layer), tuple(part[:number] for part in expected))
    else:
        assert refusal.value.logits is None and refusal.value.exit_layer is None
    same(predict(model, coming, policy), tuple(part[number:] for part in expected))


def test_what_has_a_length_but_can_be_read_once_is_read_once():
    class Once:
        def __init__(self, rows):
            self.rows = iter(rows)

        def __len__(self):
            return ROWS

        def __iter__(self):
            return self.rows

    same(predict(served("bert"), Once(sentences()), None), predict(served("bert"), sentences(), None))


def test_rows_of_different_kinds_of_numbers_share_a_batch():
    rows = as_lists(sentences(6))
    kinds = (np.int16, np.int32, np.int64, np.uint8, np.int8, np.uint16)
    mixed = [{"input_ids": np.array(row["input_ids"], dtype=kind)} for row, kind in zip(rows, kinds, strict=True)]
    same(predict(served("bert"), mixed, None), predict(served("bert"), rows, None))


def test_a_model_in_training_mode_predicts_nothing():
    model = tiny_model("bert", num_labels=3).train()
    with counted(model, "key") as positions, pytest.raises(ValueError, match="model.training=True: must be False"):
        model.predict([ROW], progress=False)
    assert sum(positions["key"]) == 0 and model.training


# ---- what is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["albert", "bert, prompts", "bert, hashed, cls"])
def test_no_stream_changes_the_model(name):
    model = served.__wrapped__(name)  # which no stream has seen yet
    before = inside(model)
    for policy in (None, {"criterion": "patience", "patience": 1}, generous("entropy")):
        model.predict(sentences(9), policy, 4, progress=False)
    with pytest.raises(ValueError):
        model.predict([ROW, {"input_ids": []}], progress=False)
    assert unchanged(before, inside(model))


@pytest.mark.parametrize("name", ["albert", "bert, some exits"])
def test_streams_in_threads_get_what_each_would_get_alone(name):
    model, evidence = served(name), evidence_of(name)
    asked = [setting("entropy", SINGLE_LABEL, evidence), ExitPolicy("patience", patience=1)]
    expected = [expected_of(name, policy) for policy in asked]
    assert expected[0][1].tolist() != expected[1][1].tolist()
    begun, known = threading.Barrier(2, timeout=20), threading.local()

    def meet():
        """Both streams are under way before either goes on."""
        for number, row in enumerate(sentences()):
            if number == 12 and not hasattr(known, "met"):
                known.met = True
                begun.wait()
            yield row

    def serve(number: int):
        found = []
        for _ in range(4):
            output = model.predict(meet(), asked[number], 4 - number, progress=False)
            found.append((output.logits, output.exit_layer))
        return found

    with ThreadPoolExecutor(2) as threads:
        for number, found in enumerate(threads.map(serve, range(2))):
            for answers in found:
                same(answers, expected[number])


def test_the_generator_that_yields_rows_may_take_gradients():
    def generated():
        weight = torch.ones(1, requires_grad=True)
        (2 * weight).backward()
        yield {"input_ids": [5, 6, 6 + int(weight.grad)]}

    model = tiny_model("bert")
    expected = model.predict([{"input_ids": [5, 6, 8]}], progress=False)
    assert torch.equal(model.predict(generated(), progress=False).logits, expected.logits)


def test_answers_are_plain_tensors_on_the_cpu_without_a_graph():
    output = served("bert").predict(sentences(5), {"criterion": "patience", "patience": 1}, progress=False)
    assert output.logits.shape == (5, 3) and output.exit_layer.shape == (5,)
    assert output.exit_layer.dtype == torch.long and not output.logits.requires_grad
    assert output.logits.device.type == output.exit_layer.device.type == "cpu"
    assert output.loss is None and output.exit_logits is None and output.hidden_states is None


def test_progress_is_shown_unless_it_is_not_wanted(capfd, monkeypatch):
    monkeypatch.setattr(logging, "_tqdm_active", True)  # the tests' environment has bars switched off
    served("bert").predict(sentences(5), progress=False)
    silent = capfd.readouterr()
    served("bert").predict(sentences(5))
    shown = capfd.readouterr()
    assert silent.out == silent.err == shown.out == ""
    assert "Predicting" in shown.err and "/5 " in shown.err


# ---- half precision -------------------------------------------------------------------------------------------------


@cache
def half(name: str) -> PFBerxitForSequenceClassification:
    return copy.deepcopy(served(name, use_lte=True, use_prototypes=True, use_nsp=True)).bfloat16()


@pytest.mark.parametrize("name", RULES)
def test_a_stream_in_half_precision_decides_in_single(name):
    model = half("albert, cls")
    rule, seen = CRITERIA[RULES[name]["criterion"]], set()

    def spy(now, evidence, state, policy):
        score = rule.score(now, evidence, state, policy)
        seen.add((evidence.logits.dtype, now.dtype, state.past.dtype, score.dtype))
        return score

    policy = ExitPolicy(**RULES[name], threshold=0.3, patience=1, appointed_layer=3)
    CRITERIA[RULES[name]["criterion"]] = rule._replace(score=spy)
    try:
        logits, _ = predict(model, sentences(12), policy, 4, HUNGRY)
    finally:
        CRITERIA[RULES[name]["criterion"]] = rule
    assert seen == {(torch.bfloat16, torch.float32, torch.float32, torch.float32)}
    assert logits.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["albert", "albert, cls", "albert, eager", "bert", "bert, cls", "bert, prompts"])
def test_a_stream_in_half_precision_gives_the_same_up_to_rounding(name):
    model, rows = half(name), sentences()
    recorded = alone(model, rows)
    policy = setting("entropy", SINGLE_LABEL, recorded)
    expected, layers = replay(recorded, policy, model.exit_depths, SINGLE_LABEL)
    found, depths = predict(model, rows, policy, 4, HUNGRY)
    agree = depths == layers  # bf16 may round a row over the threshold
    assert agree.float().mean() > 0.8 and len(set(layers.tolist())) >= 3
    assert found.dtype == torch.bfloat16
    assert_close(found[agree], expected[agree], atol=0.15, rtol=0.05)


def test_ids_up_to_the_vocabulary_s_last_are_read():
    rows = [{"input_ids": [VOCABULARY - 1, 0, 5]}, {"input_ids": [VOCABULARY - 1]}]
    model, policy = served("bert"), ExitPolicy("appointed", appointed_layer=2)
    tensors = [{"input_ids": torch.tensor(row["input_ids"])} for row in rows]
    same(predict(model, rows, policy), replay(alone(model, tensors), policy, model.exit_depths, SINGLE_LABEL))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.ao:UserWarning")
def test_a_model_whose_linear_layers_torch_has_quantised_is_read():
    quantised = torch.ao.quantization.quantize_dynamic(tiny_model(), {torch.nn.Linear})
    (row,) = rows_of(tiny_batch(1))
    with torch.inference_mode():
        assert_close(quantised.predict([{"input_ids": row}], progress=False).logits, quantised(row[None]).logits)
